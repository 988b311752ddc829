"""What a call of `linear` asks for: its sizes, what it multiplies, and in one sentence why the kernel does not take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgewam.kernels.call import Call
from edgewam.kernels.operands import misplaced
from edgewam.kernels.reference import SQUARE_COLUMNS
from edgewam.kernels.target import Target

FLOATS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
CODES = {torch.float8_e4m3fn: "fp8", torch.int8: "int8", torch.uint8: "int4"}
MOST_NORMED = 4096  # inputs of a norm, which every block of the product reads twice
ACTIVATIONS = ("none", "gelu", "gelu_exact")
ATTRIBUTES = {"norm", "eps", "activation", "activations", "pairs"}
VECTORS = ("shift", "scale", "clean_shift", "clean_scale", "smooth", "gate", "clean_gate", "input_scale", "delta")
PROLOGUE = ("shift", "scale", "smooth")
_LEAST_TILE = {"int8": 32, "fp8": 32}  # inputs of one product on matrix units; 16 of the other types


@dataclass(frozen=True)
class Problem:
    """layers, rows, ins, outs: sizes.  product: the type that is multiplied, rounded: what the input is rounded to before.

    group: so many inputs share a scale of the weight, 0: all of them.  packed: two codes a byte.  is_plain: the input is
    multiplied as it is.
    """

    layers: int
    rows: int
    ins: int
    outs: int
    product: str
    rounded: str
    group: int
    packed: bool
    is_plain: bool

    @property
    def least_tile(self) -> int:
        """Inputs that a tile holds at least."""
        return _LEAST_TILE.get(self.product, 16) * (2 if self.packed else 1)


def problem_of(call: Call, tensors: Mapping[str, Tensor]) -> Problem:
    """The problem of a call that `refusal` finds nothing wrong with."""
    x, weight, scale = tensors["x"], tensors["weight"], tensors.get("weight_scale")
    is_grouped = scale is not None and scale.dim() == weight.dim()
    rounded, product = str(call.attributes.get("activations", "none")), _product(call, tensors)
    changes = call.attributes.get("norm", False) or any(role in tensors for role in PROLOGUE)
    return Problem(
        layers=weight.shape[0] if weight.dim() == 3 else 1,
        rows=x.shape[-2],
        ins=x.shape[-1],
        outs=weight.shape[-2],
        product=product,
        rounded=rounded,
        group=x.shape[-1] // scale.shape[-1] if is_grouped and scale is not None else 0,
        packed=weight.dtype == torch.uint8,
        is_plain=not changes and FLOATS[x.dtype] == product and rounded in ("none", product),
    )


def _product(call: Call, tensors: Mapping[str, Tensor]) -> str:
    """The type in which inputs and weights are exact, as small as there is."""
    x, weight = tensors["x"].dtype, tensors["weight"].dtype
    rounded = str(call.attributes.get("activations", "none"))
    if rounded in ("fp8", "int8"):
        return rounded
    if rounded == "none" and not call.attributes.get("norm", False) and not any(role in tensors for role in PROLOGUE):
        rounded = FLOATS[x]  # nothing happens to the input on its way
    is_exact = weight in CODES or FLOATS.get(weight) == rounded
    return rounded if rounded in ("float16", "bfloat16") and is_exact else "float32"


def refusal(call: Call, tensors: Mapping[str, Tensor], target: Target) -> str:
    """ "" or one sentence: the first of dtypes, attributes, shapes, strides and devices that does not fit."""
    return (
        _wrong_roles(tensors)
        or _wrong_dtypes(call, tensors, target)
        or _wrong_shapes(call, tensors)
        or _wrong_attributes(call, tensors)
        or _wrong_places(tensors, target)
    )


def _wrong_roles(tensors: Mapping[str, Tensor]) -> str:
    for role in ("x", "weight", "y"):
        if role not in tensors:
            return f"There is no tensor for '{role}'."
    if ("shift" in tensors) != ("scale" in tensors):
        return "Of 'shift' and 'scale' only one is there; a modulation has both."
    if "prefix" in tensors and "mask" not in tensors:
        return "A 'prefix' needs a 'mask' that says where it goes."
    known = {"x", "weight", "weight_scale", "bias", "mask", "residual", "prefix", "y", "squares", *VECTORS}
    return next((f"The kernel knows no '{role}'." for role in tensors if role not in known), "")


def _wrong_dtypes(call: Call, tensors: Mapping[str, Tensor], target: Target) -> str:
    for role, tensor in tensors.items():
        allowed: tuple[torch.dtype, ...] = tuple(FLOATS)
        if role == "weight":
            allowed = (*FLOATS, *CODES)
        elif role == "mask":
            allowed = (torch.bool,)
        elif role == "squares":
            allowed = (torch.float32,)
        if tensor.dtype not in allowed:
            return f"'{role}' is {_name(tensor.dtype)}, not {' or '.join(map(_name, allowed))}."
    rounded, weight = call.attributes.get("activations", "none"), tensors["weight"].dtype
    used = {*(FLOATS.get(tensor.dtype, "") for tensor in tensors.values()), rounded}
    if target.interpreted and "bfloat16" in used:
        return "Triton's interpreter computes bfloat16 wrongly; compile for float32 or float16, or for a GPU."
    if "fp8" in (rounded, CODES.get(weight)) and not target.has_fp8_products:
        return f"{target.name} has no FP8; it needs sm_89 or newer."
    if rounded in ("fp8", "int8"):
        if CODES.get(weight) not in (rounded, "int4"):
            return f"Activations of {rounded} are multiplied with weights of {rounded} or int4, not {_name(weight)}."
        if "input_scale" not in tensors:
            return f"Activations of {rounded} need an 'input_scale'."
    elif rounded not in ("none", "float16", "bfloat16"):
        return f"The kernel cannot round activations to '{rounded}'."
    return ""


def _wrong_shapes(call: Call, tensors: Mapping[str, Tensor]) -> str:
    x, weight = tensors["x"], tensors["weight"]
    if weight.dim() not in (2, 3) or x.dim() not in (2, weight.dim()):
        return f"'x' has {x.dim()} axes and 'weight' {weight.dim()}; the kernel takes 2, or 3 of a batch of layers."
    batch, outs, (rows, ins) = tuple(weight.shape[:-2]), weight.shape[-2], x.shape[-2:]
    if 0 in (*batch, outs, rows, ins):
        return "There is nothing to multiply: an axis has no elements."
    like_y = (*batch, 2, rows, outs // 2) if call.attributes.get("pairs", False) else (*batch, rows, outs)
    inner = (ins,) if weight.dtype != torch.uint8 else (ins // 2,)
    wanted: dict[str, list[tuple[int, ...]]] = {
        "x": [(rows, ins), (*batch, rows, ins)],
        "weight": [(*batch, outs, *inner)],
        "bias": [(outs,), (*batch, outs)],
        "mask": [(rows,)],
        "residual": [like_y],
        "prefix": [(rows, outs)],
        "y": [like_y],
        "squares": [(*batch, rows, outs // SQUARE_COLUMNS)],
        "gate": [(outs,)],
        "clean_gate": [(outs,)],
        "input_scale": [(1,)],
        "delta": [(1,)],
    }
    for role, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if role == "weight_scale":
            whole = (*batch, outs)
            if shape != whole and not (shape[:-1] == whole and shape[-1] and ins % shape[-1] == 0):
                return f"'weight_scale' is {list(shape)}, not {list(whole)} or one more axis of groups that divide {ins} inputs."
        elif shape not in wanted.get(role, [(ins,)]):
            return f"'{role}' is {list(shape)}, not {' or '.join(str(list(s)) for s in wanted.get(role, [(ins,)]))}."
    if weight.dtype == torch.uint8 and ins % 2:
        return f"Codes are two a byte, and {ins} inputs are odd."
    problem = problem_of(call, tensors)
    if problem.group and (problem.group & -problem.group) < problem.least_tile:
        return f"Groups of {problem.group} inputs share a scale; the kernel takes multiples of {problem.least_tile}."
    return ""


def _wrong_attributes(call: Call, tensors: Mapping[str, Tensor]) -> str:
    (ins,), (outs,) = tensors["x"].shape[-1:], tensors["weight"].shape[-2:-1]
    if unknown := set(call.attributes) - ATTRIBUTES:
        return f"The kernel does not know the attribute '{sorted(unknown)[0]}'."
    if call.attributes.get("activation", "none") not in ACTIVATIONS:
        return f"The kernel knows no activation '{call.attributes['activation']}'."
    if call.attributes.get("norm", False) and ins > MOST_NORMED:
        return f"A norm over {ins} inputs is wider than {MOST_NORMED}."
    if "squares" in tensors and outs % SQUARE_COLUMNS:
        return f"Squares are summed over {SQUARE_COLUMNS} columns, which do not divide {outs} outputs."
    if call.attributes.get("pairs", False):
        if outs % 2:
            return f"{outs} outputs have no halves."
        if found := [role for role in ("gate", "prefix") if role in tensors]:
            return f"Pairs are written without a '{found[0]}'."
    if tensors["weight"].dim() == 3 and (found := [role for role in ("gate", "delta", "prefix") if role in tensors]):
        return f"A batch of layers has no '{found[0]}'."
    return ""


def _wrong_places(tensors: Mapping[str, Tensor], target: Target) -> str:
    if why := misplaced(tensors, target):
        return why
    x, y = tensors["x"], tensors["y"]
    if _overlap(x, y) or ("squares" in tensors and _overlap(x, tensors["squares"])):
        return "The output lies in the memory of 'x', which other blocks still read."
    return ""


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the memory of two tensors may overlap: their ends, not their strides, are compared."""
    if a.is_meta or b.is_meta or a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    return a.data_ptr() < _end(b) and b.data_ptr() < _end(a)


def _end(tensor: Tensor) -> int:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr() + (last + 1) * tensor.element_size()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

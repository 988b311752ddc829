"""What a kernel takes: shapes written in letters, dtypes, strides and devices.  Each check gives "" or one sentence why not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from edgewam.kernels.target import Target

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
WIDEST_HEAD = 256  # a tile of 16 rows and two of 16 keys, this wide in float32, take half of the least shared memory
_MOST_ELEMENTS = 2**31 - 1  # offsets in kernels are 32 bits


def measured(tensors: Mapping[str, Tensor], shapes: Mapping[str, str]) -> tuple[dict[str, int], str]:
    """Sizes by letter from shapes such as {"q": "S A", "kv": "2 T A"}, and a sentence about the first tensor that differs."""
    sizes: dict[str, int] = {}
    for role, shape in shapes.items():
        if role not in tensors:
            return sizes, f"There is no tensor for '{role}'."
        wanted, found = shape.split(), tuple(tensors[role].shape)
        if len(wanted) != len(found):
            return sizes, f"'{role}' has {len(found)} axes, not {len(wanted)}."
        for axis, (letter, size) in enumerate(zip(wanted, found, strict=True)):
            must = int(letter) if letter.isdigit() else sizes.setdefault(letter, size)
            if size != must:
                return sizes, f"Axis {axis} of '{role}' is {size}, not {must}."
    return sizes, ""


def unequal(*claims: tuple[str, int, int]) -> str:
    """For (what, is, must be): a sentence about the first that is not."""
    return next((f"{what} is {found}, not {must}." for what, found, must in claims if found != must), "")


def misplaced(tensors: Mapping[str, Tensor], target: Target) -> str:
    """A sentence when a tensor is on another device, its last axis is spread out, or it is too long for 32-bit offsets."""
    device = "cpu" if target.interpreted else "cuda"
    for role, tensor in tensors.items():
        if tensor.device.type not in (device, "meta"):
            return f"'{role}' is on {tensor.device}, and the kernels for {target.name} take tensors on {device}."
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            return f"The last axis of '{role}' has stride {tensor.stride(-1)}, not 1."
        if sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) > _MOST_ELEMENTS:
            return f"'{role}' spans more than {_MOST_ELEMENTS} elements."
    return ""


def mistyped(tensors: Mapping[str, Tensor], same: Iterable[str], float32: Iterable[str]) -> str:
    """A sentence when the dtypes do not fit: `same` share one of FLOATS, `float32` are that, the others any of FLOATS."""
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
    for role, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            return f"'{role}' is {_name(tensor)}, not one of {names}."
    for role in float32:
        if role in tensors and tensors[role].dtype != torch.float32:
            return f"'{role}' is {_name(tensors[role])}, not float32."
    first, *others = (role for role in same if role in tensors)
    for role in others:
        if tensors[role].dtype != tensors[first].dtype:
            return f"'{role}' is {_name(tensors[role])} and '{first}' is {_name(tensors[first])}; they must be of one dtype."
    return ""


def headless(width: int, num_heads: int) -> str:
    """A sentence when `width` cannot be split into heads that a kernel takes."""
    if num_heads < 1 or width % num_heads:
        return f"A width of {width} is not {num_heads} heads of one width."
    head = width // num_heads
    if head % 2 or head > WIDEST_HEAD:
        return f"A head is {head} wide; the kernel takes even widths up to {WIDEST_HEAD}."
    return ""


def has_float32_products(tensor: Tensor, target: Target) -> bool:
    """Whether tiles are made float32 before they are multiplied: float32 itself, and bfloat16, which the interpreter cannot."""
    return tensor.dtype == torch.float32 or (target.interpreted and tensor.dtype == torch.bfloat16)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

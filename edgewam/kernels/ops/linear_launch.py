"""The launches of one call of `linear`: what binding it and compiling it ahead of time have in common.

Usually one; where its blocks together would read much more input than there is, a first one prepares the input once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edgewam.kernels.call import Call
from edgewam.kernels.launch import Launch
from edgewam.kernels.ops.linear_problem import PROLOGUE, Problem, problem_of
from edgewam.kernels.reference import EPS, SQUARE_COLUMNS
from edgewam.kernels.scratch import scratch
from edgewam.kernels.target import Target
from edgewam.kernels.tiles import power
from edgewam.kernels.variant import Variant

PROLOGUE_BYTES = 2**25  # of input that blocks may read on their own: L2 delivers them in about the time of one more launch
CLEAN = ("clean_shift", "clean_scale", "clean_gate")
EPILOGUE = ("bias", "gate", "clean_gate", "residual", "delta", "prefix", "y", "squares")
_PREPARED_ROWS, _PREPARED_INS = 4, 512  # the tile of `prepare`: its blocks are small, so that there are many
_VALUES_OF_A_THREAD = 8  # of a norm's tile; three tiles are in registers, beside the first tile of weights
_LINE = 128  # bytes of a line of L2
PRODUCTS = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}


def launches(call: Call, tensors: Mapping[str, Tensor], variant: Variant, target: Target) -> tuple[Launch, ...]:
    """The launches, in their order, on these tensors; those on the meta device launch nothing and can be compiled."""
    problem = problem_of(call, tensors)
    roles = _present(tensors, problem)
    prologue = {
        "NORM": bool(call.attributes.get("norm", False)),
        "EPS": float(call.attributes.get("eps", EPS)),
        "ROUNDED": problem.rounded,
    }
    if not is_prepared(problem, call, roles["x"], variant):
        return (_product(call, roles, prologue, problem, variant, target),)
    x = roles["x"]
    layers = x.shape[0] if x.dim() == 3 else 1
    shape = (*x.shape[:-2], problem.rows, problem.ins)
    ready = scratch("ready", roles["y"], shape, PRODUCTS[problem.product])
    names = ("x", "shift", "scale", "clean_shift", "clean_scale", "mask", "smooth", "input_scale")
    given = {name: roles[name] for name in names if name in roles}
    constants = {
        **dict.fromkeys(name for name in names if name not in given),
        **prologue,
        "ROWS": problem.rows,
        "INS": problem.ins,
        "X_LAYER": _layer(x),
        "X_ROW": x.stride(-2),
        "PRODUCT": problem.product,
        "ON_GRID": target.interpreted,
        "ROW_TILE": _PREPARED_ROWS,
        "IN_TILE": min(_PREPARED_INS, power(problem.ins)),
        "NORM_TILE": min(_PREPARED_INS, power(problem.ins)),
    }
    grid = (-(-problem.rows // _PREPARED_ROWS), layers)
    first = Launch("linear", "prepare", {**given, "ready": ready}, constants, grid, replace(variant, warps=4, stages=1), target)
    rest = {role: tensor for role, tensor in roles.items() if role not in (*PROLOGUE, "clean_shift", "clean_scale")}
    plain = {"NORM": False, "EPS": prologue["EPS"], "ROUNDED": "none"}
    problem = replace(problem, is_plain=True)
    return first, _product(call, {**rest, "x": ready}, plain, problem, variant, target)


def is_prepared(problem: Problem, call: Call, x: Tensor, variant: Variant) -> bool:
    """Whether the input is prepared by a launch of its own: its blocks would read too much of it each for itself."""
    blocks = -(-problem.outs // variant.outs) * -(-problem.rows // variant.rows) * problem.layers
    reads = 1 + (variant.splits if call.attributes.get("norm", False) else 0)
    size = variant.rows * problem.ins * x.element_size()
    return not problem.is_plain and blocks > 1 and blocks * reads * size > PROLOGUE_BYTES


def _present(tensors: Mapping[str, Tensor], problem: Problem) -> dict[str, Tensor]:
    """The tensors that have an effect, the mask as bytes."""
    roles = dict(tensors)
    if "mask" not in roles or not any(role in roles for role in (*CLEAN, "prefix")):
        roles = {role: tensor for role, tensor in roles.items() if role not in (*CLEAN, "mask")}
    else:
        roles["mask"] = roles["mask"].view(torch.uint8)
    if problem.rounded not in ("fp8", "int8"):
        roles.pop("input_scale", None)
    return roles


def _product(
    call: Call,
    roles: Mapping[str, Tensor],
    prologue: Mapping[str, Any],
    problem: Problem,
    variant: Variant,
    target: Target,
) -> Launch:
    x, weight, y = roles["x"], roles["weight"], roles["y"]
    pairs, column_tile = bool(call.attributes.get("pairs", False)), variant.ins // (2 if problem.packed else 1)
    row_tiles, out_tiles = -(-problem.rows // variant.rows), -(-problem.outs // variant.outs)
    all_blocks = -(-problem.ins // variant.ins)
    blocks = -(-all_blocks // variant.splits)  # of one split
    splits = -(-all_blocks // blocks)  # none of them is empty
    given = dict(roles)
    if splits > 1:
        units, tile = problem.layers * row_tiles * out_tiles, variant.outs * variant.rows
        given["partials"] = scratch("partials", y, (units, splits, tile), torch.float32)
        given["arrivals"] = scratch("arrivals", y, (units,), torch.int32)
    names = (
        "x", "weight", "weight_scale", "bias", "shift", "scale", "clean_shift", "clean_scale", "mask", "smooth", "input_scale",
        "gate", "clean_gate", "residual", "delta", "prefix", "y", "squares", "partials", "arrivals",
    )  # fmt: skip
    scale, bias, residual, squares = (roles.get(role) for role in ("weight_scale", "bias", "residual", "squares"))
    constants = {
        **dict.fromkeys(name for name in names if name not in given),
        **prologue,
        "ROWS": problem.rows,
        "INS": problem.ins,
        "OUTS": problem.outs,
        "COLUMNS": weight.shape[-1],
        "GROUP": problem.group,
        "X_LAYER": _layer(x),
        "X_ROW": x.stride(-2),
        "W_LAYER": _layer(weight),
        "W_ROW": weight.stride(-2),
        "SCALE_LAYER": scale.stride(0) if scale is not None and weight.dim() == 3 else 0,
        "SCALE_ROW": scale.stride(weight.dim() - 2) if scale is not None else 0,
        "BIAS_LAYER": bias.stride(0) if bias is not None and bias.dim() == 2 else 0,
        "RESIDUAL_LAYER": 0 if residual is None or weight.dim() == 2 else residual.stride(0),
        "RESIDUAL_HALF": residual.stride(-3) if residual is not None and pairs else 0,
        "RESIDUAL_ROW": residual.stride(-2) if residual is not None else 0,
        "PREFIX_ROW": roles["prefix"].stride(0) if "prefix" in roles else 0,
        "Y_LAYER": 0 if weight.dim() == 2 else y.stride(0),
        "Y_HALF": y.stride(-3) if pairs else 0,
        "Y_ROW": y.stride(-2),
        "SQUARES_LAYER": _layer(squares) if squares is not None else 0,
        "SQUARES_ROW": squares.stride(-2) if squares is not None else 0,
        "SQUARE_COLUMNS": SQUARE_COLUMNS,
        "PRODUCT": problem.product,
        "PACKED": problem.packed,
        "PLAIN": problem.is_plain,
        "ACTIVATION": str(call.attributes.get("activation", "none")),
        "PAIRS": pairs,
        "ON_GRID": target.interpreted,
        "ROW_TILE": variant.rows,
        "OUT_TILE": variant.outs,
        "IN_TILE": variant.ins,
        "COLUMN_TILE": column_tile,
        "NORM_TILE": _norm_tile(problem, variant, target),
        "ROW_TILES": row_tiles,
        "BLOCKS": blocks,
        "ALL_BLOCKS": all_blocks,
        "SPLITS": splits,
        "LINES": power(-(-blocks * column_tile * weight.element_size() // _LINE), 1),
        "LINE_COLUMNS": _LINE // weight.element_size(),
    }
    return Launch("linear", "linear", given, constants, (out_tiles * row_tiles, splits, problem.layers), variant, target)


def _norm_tile(problem: Problem, variant: Variant, target: Target) -> int:
    """Columns of a row that a norm reads at once."""
    if target.interpreted:
        return power(problem.ins)
    return min(power(problem.ins), power(_VALUES_OF_A_THREAD * 32 * variant.warps // variant.rows))


def _layer(tensor: Tensor) -> int:
    """The stride between layers of [L, S, ..]; 0 of [S, ..]."""
    return tensor.stride(0) if tensor.dim() == 3 else 0

"""The planner's last layer: keys normed over all heads, multiplied with their gains and turned; keys and values as its context.

Its inputs may be parts of a projection that has queries in front; only their last axis must be contiguous.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from edgewam.kernels.call import Call
from edgewam.kernels.launch import Launch
from edgewam.kernels.operands import headless, measured, misplaced, mistyped, unequal
from edgewam.kernels.reference import EPS, SQUARE_COLUMNS
from edgewam.kernels.target import Target
from edgewam.kernels.tiles import power, with_dependent
from edgewam.kernels.variant import Variant

SHAPES = {"kv": "S W", "squares": "S G", "gain": "A", "cos": "S P", "sin": "S P", "context": "2 S A"}


def support(call: Call, tensors: Mapping[str, Tensor], target: Target) -> str:
    """Why the kernel does not take these tensors, or ""."""
    sizes, why = measured(tensors, SHAPES)
    if why:
        return why
    width, head = sizes["A"], 2 * sizes["P"]
    if width % head:
        return f"A width of {width} is not made of heads of {head}, which 'cos' has angles for."
    return (
        headless(width, width // head)
        or unequal(
            ("The width of 'kv'", sizes["W"], 2 * width),
            ("The width of 'squares'", sizes["G"] * SQUARE_COLUMNS, 2 * width),
            ("The width of 'gain' modulo 64", width % SQUARE_COLUMNS, 0),
        )
        or misplaced(tensors, target)
        or mistyped(tensors, same=("context",), float32=("squares", "gain", "cos", "sin"))
    )


def variants(call: Call, tensors: Mapping[str, Tensor], target: Target) -> tuple[Variant, ...]:
    """Nothing is multiplied, so tiles may have few rows: more blocks have more loads on their way."""
    head_tile = power(2 * tensors["cos"].shape[1])
    most = power(tensors["kv"].shape[0], 1)
    sizes = dict.fromkeys(min(n, most) for n in ((128,) if target.interpreted else (8, 4, 16)))
    return with_dependent(target, (Variant(n, head_tile, head_tile, stages=1) for n in sizes))


def launches(call: Call, tensors: Mapping[str, Tensor], variant: Variant, target: Target) -> tuple[Launch, ...]:
    """The kernel on these tensors."""
    kv, cos, context = tensors["kv"], tensors["cos"], tensors["context"]
    rows, (_, _, width), head = kv.shape[0], context.shape, 2 * cos.shape[1]
    constants = {
        "ROWS": rows,
        "WIDTH": width,
        "HEAD": head,
        "GROUPS": width // SQUARE_COLUMNS,
        "EPS": EPS,
        "KV_ROW": kv.stride(0),
        "SQUARES_ROW": tensors["squares"].stride(0),
        "COS_ROW": cos.stride(0),
        "SIN_ROW": tensors["sin"].stride(0),
        "CONTEXT_PAIR": context.stride(0),
        "CONTEXT_ROW": context.stride(1),
        "ROW_TILE": variant.rows,
        "HEAD_TILE": power(head),
        "GROUP_TILE": power(width // SQUARE_COLUMNS, 1),
    }
    grid = (width // head, -(-rows // variant.rows))
    pointers = {role: tensors[role] for role in SHAPES}
    return (Launch("turned_attention", "context_write", pointers, constants, grid, variant, target),)

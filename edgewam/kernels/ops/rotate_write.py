"""Queries and keys normed over all heads, multiplied with gains and turned; keys and values written where a context lies.

`context` may be a part of a larger output and `q` is left out where the projection has only keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from edgewam.kernels.call import Call
from edgewam.kernels.launch import Launch
from edgewam.kernels.operands import headless, measured, misplaced, mistyped, unequal
from edgewam.kernels.program import Program
from edgewam.kernels.reference import EPS, SQUARE_COLUMNS
from edgewam.kernels.target import Target
from edgewam.kernels.tiles import power, with_dependent
from edgewam.kernels.variant import Variant

SHAPES = {"qkv": "S W", "squares": "S G", "gains": "N A", "cos": "S P", "sin": "S P", "context": "2 S A"}


def support(call: Call, tensors: Mapping[str, Tensor], target: Target) -> str:
    """Why the kernel does not take these tensors, or ""."""
    sizes, why = measured(tensors, SHAPES | ({"q": "S A"} if "q" in tensors else {}))
    if why:
        return why
    width, head, parts = sizes["A"], 2 * sizes["P"], 3 if "q" in tensors else 2
    if width % head:
        return f"A width of {width} is not made of heads of {head}, which 'cos' has angles for."
    return (
        headless(width, width // head)
        or unequal(
            ("The width of 'qkv'", sizes["W"], parts * width),
            ("The width of 'squares'", sizes["G"] * SQUARE_COLUMNS, parts * width),
            ("The width of 'gains' modulo 64", width % SQUARE_COLUMNS, 0),
            ("The number of rows of 'gains'", sizes["N"], parts - 1),
        )
        or misplaced(tensors, target)
        or mistyped(tensors, same=("context",), float32=("squares", "gains", "cos", "sin"))
    )


def variants(call: Call, tensors: Mapping[str, Tensor], target: Target) -> tuple[Variant, ...]:
    """Nothing is multiplied, so tiles may have few rows: more blocks have more loads on their way."""
    head_tile = power(2 * tensors["cos"].shape[1])
    most = power(tensors["qkv"].shape[0], 1)
    sizes = dict.fromkeys(min(n, most) for n in ((128,) if target.interpreted else (8, 4, 16)))
    return with_dependent(target, (Variant(n, head_tile, head_tile, stages=1) for n in sizes))


def bind(call: Call, tensors: Mapping[str, Tensor], variant: Variant, target: Target) -> Callable[[], None]:
    """The launch on these tensors."""
    return _launch(tensors, variant, target).bind()


def programs(call: Call, tensors: Mapping[str, Tensor], variant: Variant, target: Target) -> tuple[Program, ...]:
    """The kernel for ahead-of-time compilation."""
    return (_launch(tensors, variant, target).program(),)


def _launch(tensors: Mapping[str, Tensor], variant: Variant, target: Target) -> Launch:
    qkv, cos, context = tensors["qkv"], tensors["cos"], tensors["context"]
    rows, (_, _, width), head = qkv.shape[0], context.shape, 2 * cos.shape[1]
    q = tensors.get("q", context)  # the kernel needs a pointer, also one that it does not follow
    constants = {
        "ROWS": rows,
        "WIDTH": width,
        "HEAD": head,
        "GROUPS": width // SQUARE_COLUMNS,
        "EPS": EPS,
        "QKV_ROW": qkv.stride(0),
        "SQUARES_ROW": tensors["squares"].stride(0),
        "GAINS_ROW": tensors["gains"].stride(0),
        "COS_ROW": cos.stride(0),
        "SIN_ROW": tensors["sin"].stride(0),
        "CONTEXT_PAIR": context.stride(0),
        "CONTEXT_ROW": context.stride(1),
        "Q_ROW": q.stride(0),
        "QUERIES": int("q" in tensors),
        "ROW_TILE": variant.rows,
        "HEAD_TILE": power(head),
        "GROUP_TILE": power(width // SQUARE_COLUMNS, 1),
    }
    grid = (width // head, -(-rows // variant.rows))
    pointers = {**{role: tensors[role] for role in SHAPES}, "q": q}
    return Launch("turned_attention", "rotate_write", pointers, constants, grid, variant, target)

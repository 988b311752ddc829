"""The state's key and value of every layer, normed, behind those of the text, which the same kernel copies.

Nearly all of it is the copy (18 MB at full size): every layer's keys, and its values, are one run of memory in `text` and in `y`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from edgewam.kernels.call import Call
from edgewam.kernels.launch import Launch
from edgewam.kernels.operands import measured, misplaced, mistyped, unequal
from edgewam.kernels.reference import EPS, SQUARE_COLUMNS
from edgewam.kernels.target import Target
from edgewam.kernels.tiles import power, with_dependent
from edgewam.kernels.variant import Variant

SHAPES = {"raw": "1 W", "squares": "1 G", "gains": "L A", "text": "L 2 R A", "y": "L 2 U A"}


def support(call: Call, tensors: Mapping[str, Tensor], target: Target) -> str:
    """Why the kernel does not take these tensors, or ""."""
    sizes, why = measured(tensors, SHAPES)
    if why:
        return why
    width = 2 * sizes["L"] * sizes["A"]
    return (
        unequal(
            ("The width of 'raw'", sizes["W"], width),
            ("The width of 'squares'", sizes["G"] * SQUARE_COLUMNS, width),
            ("The width of 'gains' modulo 64", sizes["A"] % SQUARE_COLUMNS, 0),
            ("The number of rows of 'y'", sizes["U"], sizes["R"] + 1),
            ("The stride of the rows of 'text'", tensors["text"].stride(2), sizes["A"]),
            ("The stride of the rows of 'y'", tensors["y"].stride(2), sizes["A"]),
        )
        or misplaced(tensors, target)
        or mistyped(tensors, same=("text", "y"), float32=("squares", "gains"))
    )


def variants(call: Call, tensors: Mapping[str, Tensor], target: Target) -> tuple[Variant, ...]:
    """`outs` elements a block: enough loads of 16 bytes a thread on their way, enough blocks for every processor."""
    _, _, rows, width = tensors["y"].shape
    blocks = [min(n, power(rows * width)) for n in ((16384,) if target.interpreted else (4096, 8192, 2048))]
    return with_dependent(target, (Variant(1, block, 1, warps=w, stages=1) for block in dict.fromkeys(blocks) for w in (4, 8)))


def launches(call: Call, tensors: Mapping[str, Tensor], variant: Variant, target: Target) -> tuple[Launch, ...]:
    """The kernel on these tensors."""
    text, y = tensors["text"], tensors["y"]
    layers, _, rows, width = text.shape
    copied, block = rows * width, variant.outs
    constants = {
        "COPIED": copied,
        "WIDTH": width,
        "GROUPS": width // SQUARE_COLUMNS,
        "EPS": EPS,
        "GAINS_ROW": tensors["gains"].stride(0),
        "TEXT_LAYER": text.stride(0),
        "TEXT_PAIR": text.stride(1),
        "Y_LAYER": y.stride(0),
        "Y_PAIR": y.stride(1),
        "BLOCK": block,
        "GROUP_TILE": power(width // SQUARE_COLUMNS, 1),
    }
    grid = (-(-copied // block) + -(-width // block), 2 * layers)
    return (Launch("state_write", "state_write", {role: tensors[role] for role in SHAPES}, constants, grid, variant, target),)

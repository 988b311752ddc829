"""What the kernels of `sources/turned_attention.py` share on the host: queries, keys and values of one projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from edgewam.kernels.operands import headless, unequal
from edgewam.kernels.reference import EPS, SQUARE_COLUMNS
from edgewam.kernels.tiles import power

SHAPES = {"qkv": "S W", "squares": "S G", "gains": "2 A", "cos": "S P", "sin": "S P"}  # letters as in `operands.measured`


def refusal(sizes: Mapping[str, int], num_heads: int) -> str:
    """A sentence when sizes by letter do not fit each other, or ""."""
    return headless(sizes["A"], num_heads) or unequal(
        ("The width of 'qkv'", sizes["W"], 3 * sizes["A"]),
        ("The width of 'squares'", sizes["G"] * SQUARE_COLUMNS, 3 * sizes["A"]),
        ("The number of angles in 'cos'", sizes["P"], sizes["A"] // num_heads // 2),
    )


def constants(tensors: Mapping[str, Tensor], num_heads: int) -> dict[str, Any]:
    """Sizes and strides of the tensors of SHAPES and of `y` [S, A]."""
    rows, width = tensors["y"].shape
    strides = {f"{role.upper()}_ROW": tensors[role].stride(0) for role in (*SHAPES, "y")}
    sizes = {"ROWS": rows, "WIDTH": width, "HEAD": width // num_heads, "GROUPS": width // SQUARE_COLUMNS, "EPS": EPS}
    tiles = {"HEAD_TILE": power(width // num_heads), "GROUP_TILE": power(width // SQUARE_COLUMNS, 1)}
    return {**sizes, **strides, **tiles}

"""Self-attention of the chunk's rows over routed keys and their own in one kernel, which norms, turns and never concatenates.

No call splits the keys: a head has few of them at every size.  `routed` must not be written by the call directly in front, which
writes `qkv`: see `edgewam/kernels/launch.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from edgewam.kernels.call import Call
from edgewam.kernels.launch import Launch
from edgewam.kernels.operands import has_float32_products, headless, measured, misplaced, mistyped, unequal
from edgewam.kernels.reference import EPS, SQUARE_COLUMNS
from edgewam.kernels.target import Target
from edgewam.kernels.tiles import attention_variants, power
from edgewam.kernels.variant import Variant

SHAPES = {"qkv": "S W", "squares": "S G", "gains": "2 A", "cos": "S P", "sin": "S P", "routed": "2 T A", "y": "S A"}
MOST_KEYS = 1024  # routed, and own: loops over tiles are unrolled, and each tile costs code


def support(call: Call, tensors: Mapping[str, Tensor], target: Target) -> str:
    """Why the kernel does not take these tensors, or ""."""
    sizes, why = measured(tensors, SHAPES)
    if why := why or headless(sizes["A"], int(call.attributes["num_heads"])):
        return why
    if max(sizes["S"], sizes["T"]) > MOST_KEYS:
        return f"There are {sizes['T']} routed and {sizes['S']} own keys; the kernel takes up to {MOST_KEYS} of each."
    width, pairs = sizes["A"], sizes["A"] // int(call.attributes["num_heads"]) // 2
    return (
        unequal(
            ("The width of 'qkv'", sizes["W"], 3 * width),
            ("The width of 'squares'", sizes["G"] * SQUARE_COLUMNS, 3 * width),
            ("The number of angles in 'cos'", sizes["P"], pairs),
        )
        or misplaced(tensors, target)
        or mistyped(tensors, same=("qkv", "routed"), float32=("squares", "gains", "cos", "sin"))
    )


def variants(call: Call, tensors: Mapping[str, Tensor], target: Target) -> tuple[Variant, ...]:
    """Tiles of 16 rows; few large tiles of keys wait for memory once."""
    qkv, routed = tensors["qkv"], tensors["routed"]
    head_tile = power(routed.shape[-1] // int(call.attributes["num_heads"]))
    most = power(routed.shape[1])
    rows = [16] if qkv.shape[0] <= 16 else [32, 16]
    return attention_variants(target, head_tile, qkv.element_size(), rows, [min(n, most) for n in (128, 64, 32)], (8, 4))


def launches(call: Call, tensors: Mapping[str, Tensor], variant: Variant, target: Target) -> tuple[Launch, ...]:
    """The kernel on these tensors."""
    num_heads = int(call.attributes["num_heads"])
    qkv, routed = tensors["qkv"], tensors["routed"]
    rows, (_, tokens, width) = qkv.shape[0], routed.shape
    constants = {
        "ROWS": rows,
        "TOKENS": tokens,
        "WIDTH": width,
        "HEAD": width // num_heads,
        "GROUPS": width // SQUARE_COLUMNS,
        "EPS": EPS,
        "QKV_ROW": qkv.stride(0),
        "SQUARES_ROW": tensors["squares"].stride(0),
        "GAINS_ROW": tensors["gains"].stride(0),
        "COS_ROW": tensors["cos"].stride(0),
        "SIN_ROW": tensors["sin"].stride(0),
        "ROUTED_PAIR": routed.stride(0),
        "ROUTED_ROW": routed.stride(1),
        "Y_ROW": tensors["y"].stride(0),
        "ROW_TILE": variant.rows,
        "KEY_TILE": variant.ins,
        "OWN_TILE": min(power(rows), variant.ins),
        "HEAD_TILE": power(width // num_heads),
        "GROUP_TILE": power(width // SQUARE_COLUMNS, 1),
        "FLOAT32": has_float32_products(qkv, target),
    }
    grid = (num_heads, -(-rows // variant.rows))
    pointers = {role: tensors[role] for role in SHAPES}
    return (Launch("turned_attention", "chunk_attention", pointers, constants, grid, variant, target),)

"""Cross-attention over ready keys and values with a bias per key: text behind which one key may stand for all padding.

Queries come raw from their projection; one over their RMS, from sums of squares, scales the logits.  `kv` and `bias` must not be
written by the call directly in front, which writes `q`: see `edgewam/kernels/launch.py`.
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

SHAPES = {"q": "S A", "squares": "S G", "kv": "2 T A", "bias": "T", "y": "S A"}
MOST_KEYS = 1024  # the loop over tiles is unrolled, and each tile costs code


def support(call: Call, tensors: Mapping[str, Tensor], target: Target) -> str:
    """Why the kernel does not take these tensors, or ""."""
    sizes, why = measured(tensors, SHAPES | ({"gain": "A"} if "gain" in tensors else {}))
    if why := why or headless(sizes["A"], int(call.attributes["num_heads"])):
        return why
    if sizes["T"] > MOST_KEYS:
        return f"There are {sizes['T']} keys; the kernel takes up to {MOST_KEYS}."
    return (
        unequal(("The width of 'squares'", sizes["G"] * SQUARE_COLUMNS, sizes["A"]))
        or misplaced(tensors, target)
        or mistyped(tensors, same=("q", "kv"), float32=("squares", "bias", "gain"))
    )


def variants(call: Call, tensors: Mapping[str, Tensor], target: Target) -> tuple[Variant, ...]:
    """Tiles of 16 rows for a chunk, of 32 for a frame's tokens; few large tiles of keys wait for memory once."""
    q, kv = tensors["q"], tensors["kv"]
    head_tile = power(kv.shape[-1] // int(call.attributes["num_heads"]))
    most = power(kv.shape[1])
    rows, warps = ([16], (8, 4)) if q.shape[0] <= 16 else ([32, 16], (8,))  # 4 warps have too few registers for 32 rows
    return attention_variants(target, head_tile, q.element_size(), rows, [min(n, most) for n in (128, 64, 32)], warps)


def launches(call: Call, tensors: Mapping[str, Tensor], variant: Variant, target: Target) -> tuple[Launch, ...]:
    """The kernel on these tensors."""
    num_heads = int(call.attributes["num_heads"])
    q, kv = tensors["q"], tensors["kv"]
    rows, (_, keys, width) = q.shape[0], kv.shape
    constants = {
        "ROWS": rows,
        "KEYS": keys,
        "WIDTH": width,
        "HEAD": width // num_heads,
        "GROUPS": width // SQUARE_COLUMNS,
        "EPS": EPS,
        "Q_ROW": q.stride(0),
        "SQUARES_ROW": tensors["squares"].stride(0),
        "KV_PAIR": kv.stride(0),
        "KV_ROW": kv.stride(1),
        "Y_ROW": tensors["y"].stride(0),
        "HAS_GAIN": "gain" in tensors,
        "ROW_TILE": variant.rows,
        "KEY_TILE": variant.ins,
        "HEAD_TILE": power(width // num_heads),
        "GROUP_TILE": power(width // SQUARE_COLUMNS, 1),
        "FLOAT32": has_float32_products(q, target),
    }
    # without a gain the kernel still needs a pointer, which it does not follow
    pointers = {**{role: tensors[role] for role in SHAPES}, "gain": tensors.get("gain", tensors["bias"])}
    grid = (num_heads, -(-rows // variant.rows))
    return (Launch("attention", "text_attention", pointers, constants, grid, variant, target),)

"""Self-attention of the chunk's rows over routed keys and their own in one kernel, which norms, turns and never concatenates.

No call splits the keys: a head has few of them at every size.  `routed` must not be written by the call directly in front, which
writes `qkv`: see `edgewam/kernels/launch.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from edgewam.kernels import turned
from edgewam.kernels.call import Call
from edgewam.kernels.launch import Launch
from edgewam.kernels.operands import has_float32_products, measured, misplaced, mistyped
from edgewam.kernels.target import Target
from edgewam.kernels.tiles import attention_variants, power
from edgewam.kernels.variant import Variant

SHAPES = {**turned.SHAPES, "routed": "2 T A", "y": "S A"}
MOST_KEYS = 1024  # routed, and own: loops over tiles are unrolled, and each tile costs code


def support(call: Call, tensors: Mapping[str, Tensor], target: Target) -> str:
    """Why the kernel does not take these tensors, or ""."""
    sizes, why = measured(tensors, SHAPES)
    if why := why or turned.refusal(sizes, int(call.attributes["num_heads"])):
        return why
    if max(sizes["S"], sizes["T"]) > MOST_KEYS:
        return f"There are {sizes['T']} routed and {sizes['S']} own keys; the kernel takes up to {MOST_KEYS} of each."
    same, float32 = ("qkv", "routed"), ("squares", "gains", "cos", "sin")
    return misplaced(tensors, target) or mistyped(tensors, same, float32)


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
    routed, rows = tensors["routed"], tensors["y"].shape[0]
    constants = {
        **turned.constants(tensors, num_heads),
        "TOKENS": routed.shape[1],
        "ROUTED_PAIR": routed.stride(0),
        "ROUTED_ROW": routed.stride(1),
        "ROW_TILE": variant.rows,
        "KEY_TILE": variant.ins,
        "OWN_TILE": min(power(rows), variant.ins),
        "FLOAT32": has_float32_products(routed, target),
    }
    grid = (num_heads, -(-rows // variant.rows))
    pointers = {role: tensors[role] for role in SHAPES}
    return (Launch("turned_attention", "chunk_attention", pointers, constants, grid, variant, target),)

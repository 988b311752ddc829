"""Self-attention of a frame's rows over remembered frames, which lie in slots of a larger state, and over their own keys.

It norms and turns queries and keys itself and writes the own keys and values down as this layer's context.  A slot whose bias is
-inf is empty: it is not read, whatever lies in it.
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

SHAPES = {**turned.SHAPES, "memory": "M 2 T A", "memory_bias": "M", "context": "2 S A", "y": "S A"}
OWN_TILE = 32  # own keys that are turned at a time: in registers, in float32, beside their angles


def support(call: Call, tensors: Mapping[str, Tensor], target: Target) -> str:
    """Why the kernel does not take these tensors, or ""."""
    sizes, why = measured(tensors, SHAPES)
    if why := why or turned.refusal(sizes, int(call.attributes["num_heads"])):
        return why
    same, float32 = ("qkv", "memory", "context"), ("squares", "gains", "cos", "sin", "memory_bias")
    return misplaced(tensors, target) or mistyped(tensors, same, float32)


def variants(call: Call, tensors: Mapping[str, Tensor], target: Target) -> tuple[Variant, ...]:
    """Row tiles fill the card, tiles of 64 remembered keys are loaded ahead, of 16 where heads are wide.

    8 warps: fewer have too few registers for keys that are turned.
    """
    qkv, memory = tensors["qkv"], tensors["memory"]
    head_tile = power(memory.shape[3] // int(call.attributes["num_heads"]))
    rows, most = power(qkv.shape[0]), power(max(memory.shape[2], qkv.shape[0]))
    row_tiles = [min(n, rows) for n in ((64,) if target.interpreted else (32, 64))]
    for key_tile in (128,) if target.interpreted else (64, 16):
        keys = [min(key_tile, most)]
        if found := attention_variants(target, head_tile, qkv.element_size(), row_tiles, keys, (8,), (2, 3)):
            return found
    return ()


def launches(call: Call, tensors: Mapping[str, Tensor], variant: Variant, target: Target) -> tuple[Launch, ...]:
    """The kernel on these tensors."""
    num_heads = int(call.attributes["num_heads"])
    memory, context, rows = tensors["memory"], tensors["context"], tensors["y"].shape[0]
    constants = {
        **turned.constants(tensors, num_heads),
        "SLOTS": memory.shape[0],
        "TOKENS": memory.shape[2],
        "MEMORY_SLOT": memory.stride(0),
        "MEMORY_PAIR": memory.stride(1),
        "MEMORY_ROW": memory.stride(2),
        "CONTEXT_PAIR": context.stride(0),
        "CONTEXT_ROW": context.stride(1),
        "ROW_TILE": variant.rows,
        "KEY_TILE": variant.ins,
        "OWN_TILE": variant.ins if target.interpreted else min(variant.ins, OWN_TILE),
        "FLOAT32": has_float32_products(context, target),
    }
    grid = (num_heads, -(-rows // variant.rows))
    pointers = {role: tensors[role] for role in SHAPES}
    return (Launch("turned_attention", "memory_attention", pointers, constants, grid, variant, target),)

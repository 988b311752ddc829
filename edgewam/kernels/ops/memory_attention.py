"""Attention of a frame's ready queries over remembered frames, which lie in slots of a larger state, and over their own keys.

A slot whose bias is -inf is empty: it is not read, whatever lies in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from edgewam.kernels.call import Call
from edgewam.kernels.launch import Launch
from edgewam.kernels.operands import has_float32_products, headless, measured, misplaced, mistyped
from edgewam.kernels.program import Program
from edgewam.kernels.target import Target
from edgewam.kernels.tiles import attention_variants, power
from edgewam.kernels.variant import Variant

SHAPES = {"q": "S A", "memory": "M 2 T A", "memory_bias": "M", "own": "2 S A", "y": "S A"}


def support(call: Call, tensors: Mapping[str, Tensor], target: Target) -> str:
    """Why the kernel does not take these tensors, or ""."""
    sizes, why = measured(tensors, SHAPES)
    return (
        why
        or headless(sizes["A"], int(call.attributes["num_heads"]))
        or misplaced(tensors, target)
        or mistyped(tensors, same=("q", "memory", "own"), float32=("memory_bias",))
    )


def variants(call: Call, tensors: Mapping[str, Tensor], target: Target) -> tuple[Variant, ...]:
    """Row tiles fill the card, tiles of 64 keys are loaded ahead, of 16 where heads are wide."""
    q, memory = tensors["q"], tensors["memory"]
    head_tile = power(q.shape[1] // int(call.attributes["num_heads"]))
    rows, most = power(q.shape[0]), power(max(memory.shape[2], q.shape[0]))
    row_tiles = [min(n, rows) for n in ((64,) if target.interpreted else (32, 64))]
    for key_tile in (128,) if target.interpreted else (64, 16):
        if found := attention_variants(target, head_tile, q.element_size(), row_tiles, [min(key_tile, most)], (4,), (2, 3)):
            return found
    return ()


def bind(call: Call, tensors: Mapping[str, Tensor], variant: Variant, target: Target) -> Callable[[], None]:
    """The launch on these tensors."""
    return _launch(call, tensors, variant, target).bind()


def programs(call: Call, tensors: Mapping[str, Tensor], variant: Variant, target: Target) -> tuple[Program, ...]:
    """The kernel for ahead-of-time compilation."""
    return (_launch(call, tensors, variant, target).program(),)


def _launch(call: Call, tensors: Mapping[str, Tensor], variant: Variant, target: Target) -> Launch:
    num_heads = int(call.attributes["num_heads"])
    q, memory, own = tensors["q"], tensors["memory"], tensors["own"]
    (rows, width), (slots, _, tokens, _) = q.shape, memory.shape
    constants = {
        "ROWS": rows,
        "SLOTS": slots,
        "TOKENS": tokens,
        "HEAD": width // num_heads,
        "Q_ROW": q.stride(0),
        "MEMORY_SLOT": memory.stride(0),
        "MEMORY_PAIR": memory.stride(1),
        "MEMORY_ROW": memory.stride(2),
        "OWN_PAIR": own.stride(0),
        "OWN_ROW": own.stride(1),
        "Y_ROW": tensors["y"].stride(0),
        "ROW_TILE": variant.rows,
        "KEY_TILE": variant.ins,
        "HEAD_TILE": power(width // num_heads),
        "FLOAT32": has_float32_products(q, target),
    }
    grid = (num_heads, -(-rows // variant.rows))
    return Launch("attention", "memory_attention", {role: tensors[role] for role in SHAPES}, constants, grid, variant, target)

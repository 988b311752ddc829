"""Both directions of the router in one kernel for all layers: queries read the context, the context reads what they found.

`asked` may be a view [layers, Q, A] of one product's output [Q, layers x A]; only its last axis must be contiguous.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from edgewam.kernels.call import Call
from edgewam.kernels.launch import Launch
from edgewam.kernels.operands import has_float32_products, headless, measured, misplaced, mistyped
from edgewam.kernels.target import Target
from edgewam.kernels.tiles import attention_variants, power
from edgewam.kernels.variant import Variant

SHAPES = {"asked": "L Q A", "context": "L 2 T A", "y": "L T A"}
MOST_QUERIES = 64  # all of a head are one tile, which stays in the block


def support(call: Call, tensors: Mapping[str, Tensor], target: Target) -> str:
    """Why the kernel does not take these tensors, or ""."""
    sizes, why = measured(tensors, SHAPES)
    if why := why or headless(sizes["A"], int(call.attributes["num_heads"])):
        return why
    if sizes["Q"] > MOST_QUERIES:
        return f"There are {sizes['Q']} queries; the kernel takes up to {MOST_QUERIES}."
    if why := misplaced(tensors, target) or mistyped(tensors, same=("asked", "context"), float32=()):
        return why
    return "" if variants(call, tensors, target) else f"No tiles of {sizes['Q']} queries fit the shared memory of {target.name}."


def variants(call: Call, tensors: Mapping[str, Tensor], target: Target) -> tuple[Variant, ...]:
    """Layers times heads fill the card; tiles of 64 keys leave room for two blocks on a processor, 16 are for wide heads."""
    asked, context = tensors["asked"], tensors["context"]
    head_tile = power(asked.shape[-1] // int(call.attributes["num_heads"]))
    most = power(context.shape[2])
    for key_tiles in ((128,),) if target.interpreted else ((64, 32), (16,)):
        keys = [min(n, most) for n in key_tiles]
        if found := attention_variants(target, head_tile, asked.element_size(), [power(asked.shape[1])], keys, (4, 8), (1, 2)):
            return found
    return ()


def launches(call: Call, tensors: Mapping[str, Tensor], variant: Variant, target: Target) -> tuple[Launch, ...]:
    """The kernel on these tensors."""
    num_heads = int(call.attributes["num_heads"])
    asked, context, y = tensors["asked"], tensors["context"], tensors["y"]
    (layers, queries, width), tokens = asked.shape, context.shape[2]
    constants = {
        "QUERIES": queries,
        "TOKENS": tokens,
        "HEAD": width // num_heads,
        "SCALE": (width // num_heads) ** -0.5,
        "ASKED_LAYER": asked.stride(0),
        "ASKED_ROW": asked.stride(1),
        "CONTEXT_LAYER": context.stride(0),
        "CONTEXT_PAIR": context.stride(1),
        "CONTEXT_ROW": context.stride(2),
        "Y_LAYER": y.stride(0),
        "Y_ROW": y.stride(1),
        "QUERY_TILE": power(queries),
        "KEY_TILE": variant.ins,
        "HEAD_TILE": power(width // num_heads),
        "FLOAT32": has_float32_products(asked, target),
    }
    pointers = {role: tensors[role] for role in SHAPES}
    return (Launch("attention", "router_attention", pointers, constants, (num_heads, layers), variant, target),)

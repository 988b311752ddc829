"""Attention kernels, interpreted, against their references in float64: odd shapes, views, empty slots, extreme logits."""

import pytest
import torch

from edgewam.kernels.call import Call
from edgewam.kernels.reference import memory_attention
from edgewam.kernels.target import TARGETS
from tests.kernels.attention_inputs import SMALL, check, chunk, memory, normal, op_module, ran, router, text

pytest.importorskip("triton")
DTYPES = [torch.float32, torch.float16]
# Logits of some thousands in float32 are off by 1e-3, and so are the weights of two keys that come close.
EXTREME_TOLERANCE = 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "tokens", "num_heads", "head"), [(16, 30, 4, 48), (1, 5, 4, 16), (7, 61, 2, 96), (30, 120, 1, 128)]
)
def test_chunk_attention(rows, tokens, num_heads, head, dtype):
    check("chunk_attention", *chunk(rows, tokens, num_heads, head, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "keys", "num_heads", "head", "gain"),
    [(16, 11, 4, 48, False), (1, 131, 4, 16, True), (30, 61, 2, 96, True), (7, 5, 1, 128, False)],
)
def test_text_attention(rows, keys, num_heads, head, gain, dtype):
    check("text_attention", *text(rows, keys, num_heads, head, dtype, gain))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "slots", "tokens", "num_heads", "head"), [(30, 6, 30, 4, 48), (1, 1, 5, 4, 16), (16, 2, 61, 1, 128)]
)
def test_memory_attention(rows, slots, tokens, num_heads, head, dtype):
    check("memory_attention", *memory(rows, slots, tokens, num_heads, head, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("layers", "queries", "tokens", "num_heads", "head"), [(3, 8, 30, 2, 48), (1, 1, 5, 2, 16), (2, 32, 61, 1, 128)]
)
def test_router_attention(layers, queries, tokens, num_heads, head, dtype):
    check("router_attention", *router(layers, queries, tokens, num_heads, head, dtype))


@pytest.mark.parametrize("op", ["chunk_attention", "text_attention", "memory_attention", "router_attention"])
def test_every_tile_size_gives_the_same(op):
    """Tiles that a GPU would get, too, on rows and keys that none of them divides."""
    make = {
        "chunk_attention": lambda: chunk(35, 131, 1, 64, torch.float32),
        "text_attention": lambda: text(35, 131, 1, 64, torch.float32),
        "memory_attention": lambda: memory(35, 2, 35, 1, 64, torch.float32),
        "router_attention": lambda: router(1, 17, 131, 1, 64, torch.float32),
    }[op]
    inputs, outputs, attributes = make()
    call_variants = op_module(op).variants(Call(op, {}, attributes), {**inputs, **outputs}, TARGETS[90])
    tiles = sorted({(16, 16), *((variant.rows, variant.ins) for variant in call_variants)})
    assert len(tiles) > 2
    for rows, ins in tiles:
        check(op, inputs, outputs, attributes, rows=rows, ins=ins)


@pytest.mark.parametrize("op", list(SMALL))
def test_bfloat16_is_multiplied_in_float32_where_the_interpreter_cannot(op):
    check(op, *SMALL[op](torch.bfloat16))


def test_logits_of_thousands_do_not_overflow():
    inputs, outputs, attributes = chunk(16, 30, 4, 16, torch.float32)
    inputs["gains"] *= 100.0
    check("chunk_attention", inputs, outputs, attributes, tolerance=EXTREME_TOLERANCE)
    inputs, outputs, attributes = text(16, 61, 4, 16, torch.float32)
    inputs["bias"] *= 3000.0
    inputs["gain"] *= 1000.0
    check("text_attention", inputs, outputs, attributes, tolerance=EXTREME_TOLERANCE)
    inputs, outputs, attributes = router(1, 8, 30, 2, 16, torch.float32)
    inputs["context"] *= 100.0
    ran("router_attention", inputs, outputs, attributes)
    assert outputs["y"].isfinite().all() and outputs["y"].abs().max() > 10


def test_masked_text_keys_are_not_seen_even_a_whole_tile_of_them():
    inputs, outputs, attributes = text(7, 61, 4, 16, torch.float32)
    inputs["bias"][:20] = float("-inf")
    inputs["bias"][-1] = float("-inf")
    check("text_attention", inputs, outputs, attributes, ins=16)
    before = outputs["y"].clone()
    inputs["kv"][:, :20] += 1.0
    assert torch.equal(ran("text_attention", inputs, outputs, attributes, ins=16)["y"], before)


def test_an_empty_slot_is_not_read_whatever_lies_in_it():
    inputs, outputs, attributes = memory(7, 3, 5, 4, 48, torch.float32)
    inputs["memory"][1] = float("nan")  # its bias is -inf
    ran("memory_attention", inputs, outputs, attributes)
    seen = inputs | {"memory": inputs["memory"][[0, 2]], "memory_bias": inputs["memory_bias"][[0, 2]]}
    torch.testing.assert_close(outputs["y"], memory_attention(**seen, **attributes)["y"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("slots", [0, 3])
def test_the_first_refresh_sees_itself_alone(slots):
    inputs, outputs, attributes = memory(7, slots, 5, 4, 48, torch.float32)
    inputs["memory_bias"][:] = float("-inf")
    check("memory_attention", inputs, outputs, attributes)


def test_results_go_into_views_and_leave_the_rest_alone():
    inputs, _, attributes = chunk(7, 30, 4, 16, torch.float32)
    inputs["routed"] = normal(3, 2, 30, 64)[1]
    whole = torch.zeros(9, 96)
    check("chunk_attention", inputs, {"y": whole[1:8, 16:80]}, attributes)
    assert not whole[0].any() and not whole[8].any() and not whole[:, :16].any() and not whole[:, 80:].any()

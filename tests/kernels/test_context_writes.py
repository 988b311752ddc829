"""context_write and state_write, interpreted: against their references, into parts of larger outputs, exact where they copy."""

import pytest
import torch

from tests.kernels.attention_inputs import SMALL, check, last, ran, state

pytest.importorskip("triton")
DTYPES = [torch.float32, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [False, True])
@pytest.mark.parametrize(("rows", "num_heads", "head"), [(30, 4, 48), (1, 4, 16), (7, 1, 128)])
def test_context_write(rows, num_heads, head, queries, dtype):
    check("context_write", *last(rows, num_heads, head, dtype, queries))


@pytest.mark.parametrize("rows", [1, 4, 8])
def test_every_row_tile_gives_the_same(rows):
    check("context_write", *last(7, 4, 48, torch.float32), rows=rows)


@pytest.mark.parametrize("op", ["context_write", "memory_attention"])
def test_a_layer_of_the_context_is_written_and_no_other(op):
    inputs, outputs, attributes = SMALL[op](torch.float32)
    context = torch.zeros(3, 2, 9, outputs["context"].shape[-1])
    check(op, inputs, {**outputs, "context": context[1, :, 1:8]}, attributes)
    assert not context[0].any() and not context[2].any() and not context[1, :, [0, 8]].any()


def test_turning_keeps_the_length_of_every_pair():
    inputs, outputs, _ = last(7, 4, 48, torch.float32)
    inputs["gain"][:] = 1.0
    keys = ran("context_write", inputs, outputs)["context"][0]
    raw = inputs["kv"][:, :192]
    raw = raw / (raw.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    lengths, wanted = (x.unflatten(-1, (-1, 2)).norm(dim=-1) for x in (keys, raw))
    torch.testing.assert_close(lengths, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layers", "rows", "width"), [(3, 11, 192), (1, 1, 64), (2, 0, 128)])
def test_state_write(layers, rows, width, dtype):
    check("state_write", *state(layers, rows, width, dtype))


def test_text_is_copied_bit_by_bit_from_and_into_larger_tensors():
    inputs, _, _ = state(3, 11, 192, torch.float16, raw_dtype=torch.float16)
    inputs["text"] = torch.nn.functional.pad(inputs["text"], (0, 0, 0, 4))[:, :, :11]
    y = torch.empty(5, 2, 12, 192, dtype=torch.float16)[1:4]
    check("state_write", inputs, {"y": y}, outs=256)
    assert torch.equal(y[:, :, :11], inputs["text"])

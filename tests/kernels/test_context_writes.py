"""rotate_write and state_write, interpreted: against their references, into parts of larger outputs, exact where they copy."""

import pytest
import torch

from tests.kernels.attention_inputs import check, ran, rotated, state

pytest.importorskip("triton")
DTYPES = [torch.float32, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", [3, 2])
@pytest.mark.parametrize(("rows", "num_heads", "head"), [(30, 4, 48), (1, 4, 16), (7, 1, 128)])
def test_rotate_write(rows, num_heads, head, parts, dtype):
    check("rotate_write", *rotated(rows, num_heads, head, parts, dtype))


@pytest.mark.parametrize("rows", [1, 4, 8])
def test_every_row_tile_gives_the_same(rows):
    check("rotate_write", *rotated(7, 4, 48, 3, torch.float32), rows=rows)


def test_a_layer_of_the_context_is_written_and_no_other():
    inputs, outputs, _ = rotated(7, 4, 16, 3, torch.float32)
    context = torch.zeros(3, 2, 9, 64)
    check("rotate_write", inputs, {**outputs, "context": context[1, :, 1:8]})
    assert not context[0].any() and not context[2].any() and not context[1, :, [0, 8]].any()


def test_turning_keeps_the_length_of_every_pair():
    inputs, outputs, _ = rotated(7, 4, 48, 3, torch.float32)
    inputs["gains"][:] = 1.0
    keys = ran("rotate_write", inputs, outputs)["context"][0]
    raw = inputs["qkv"][:, 192:384]
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

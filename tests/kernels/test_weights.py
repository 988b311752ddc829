"""Packed weights: what `reference.dequantized` makes of them is within half a step of the weight, and NaN is found by name."""

import pytest
import torch

from edgewam.core.errors import EdgewamError
from edgewam.kernels import reference
from edgewam.kernels.reference import dequantized
from edgewam.kernels.weights import FLOATS, FORMATS, LARGEST, from_nibbles, nibbles, pack
from edgewam.quantize.formats import FORMATS as QUANTIZED
from edgewam.quantize.formats import encode, weight_scales
from edgewam.quantize.layers import Scales, quantized

CODED = tuple(LARGEST)
REGROUPED = 2e-6  # of the largest value: float32 sums of the same codes in another order
HALF_A_STEP = 0.5 + 1e-5  # of integer codes, in units of the scale; the rest is the rounding of the scale itself
FP8_STEP = 2.0**-4 * (1 + 1e-5)  # relative: E4M3 has three bits behind the point


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("group", [0, 64])
@pytest.mark.parametrize("shape", [(5, 192), (3, 7, 128)])
@pytest.mark.parametrize("format", CODED)
def test_what_comes_back_is_within_half_a_step(format, shape, group):
    weight = random(*shape)
    packed = pack(weight, format, group)
    assert packed.scale.shape == (*shape[:-1], shape[-1] // group) if group else shape[:-1]
    found = dequantized(packed.codes, packed.scale, torch.float32)
    assert found.shape == weight.shape
    error = (found - weight).abs()
    scale = packed.scale.unsqueeze(-1) if group == 0 else packed.scale.repeat_interleave(group, -1)
    if format == "fp8":  # below the smallest normal number steps are even
        assert (error <= torch.maximum(FP8_STEP * weight.abs(), scale * 2.0**-10)).all()
    else:
        assert (error <= HALF_A_STEP * scale).all()
        assert error.max() > 0.3 * scale.min()


@pytest.mark.parametrize("format", FLOATS)
def test_floats_are_cast(format):
    weight = random(4, 6)
    packed = pack(weight, format)
    assert packed.scale is None and torch.equal(packed.codes, weight.to(FLOATS[format]))


@pytest.mark.parametrize(("ours", "theirs"), [("int8", "int8_weights"), ("fp8", "fp8")])
def test_codes_are_those_of_the_quantiser(ours, theirs):
    weight, kind = random(6, 128), QUANTIZED[theirs]
    scale = weight_scales(weight, None, None, kind)
    packed = pack(weight, ours)
    assert torch.equal(packed.scale, scale) and torch.equal(packed.codes.float(), encode(weight, scale[:, None], kind).float())


def test_two_int4_codes_lie_in_a_byte_the_even_input_low():
    codes = torch.tensor([[-8, 7, 0, -1]], dtype=torch.int8)
    assert nibbles(codes).tolist() == [[0xF0, 0x78]]
    assert torch.equal(from_nibbles(nibbles(codes)), codes)
    assert torch.equal(dequantized(nibbles(codes), torch.tensor([0.5]), torch.float32), codes * 0.5)


@pytest.mark.parametrize("format", CODED)
def test_a_channel_of_zeros_stays_zero(format):
    packed = pack(torch.zeros(2, 64), format, 64)
    assert not dequantized(packed.codes, packed.scale, torch.float32).any()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_named(format, bad):
    weight = random(3, 64)
    weight[1, 5] = bad
    with pytest.raises(EdgewamError, match=r"'denoise\.ffn\.3\.up' is not finite in 1 of 192 places, the first at \[1, 5\]"):
        pack(weight, format, name="denoise.ffn.3.up")


def test_float16_says_when_a_weight_is_too_large():
    with pytest.raises(EdgewamError, match=r"'up' has values too large for float16\. Compile with --precision bf16"):
        pack(torch.full((1, 2), 1e5), "float16", name="up")


def test_a_group_that_does_not_divide_the_inputs_is_refused():
    with pytest.raises(EdgewamError, match="has 100 inputs, which groups of 64 do not divide"):
        pack(random(2, 100), "int4", 64)
    with pytest.raises(EdgewamError, match="has 5 inputs"):
        pack(random(2, 5), "int4")
    with pytest.raises(EdgewamError, match=r"Unknown format 'int3' of weights\. Available: float32"):
        pack(random(2, 4), "int3")


@pytest.mark.parametrize("format", FORMATS)
def test_plans_pack_without_values(format):
    group = 128 if format in CODED else 0
    packed = pack(torch.empty(3, 8, 256, device="meta"), format, group)
    real = pack(random(3, 8, 256), format, group)
    assert packed.codes.is_meta and (packed.codes.shape, packed.codes.dtype) == (real.codes.shape, real.codes.dtype)
    assert (packed.scale is None) == (real.scale is None) and (real.scale is None or packed.scale.shape == real.scale.shape)


@pytest.mark.parametrize("kind", ["int8", "fp8", "int8_weights", "fp8_weights", "int4_weights"])
def test_a_quantised_layer_of_the_policy_is_the_reference(kind):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(128, 48).requires_grad_(False), random(5, 128)
    smooth = torch.linspace(0.5, 2, 128) if kind == "int8" else None
    scale = x.abs().max() / QUANTIZED[kind].largest if QUANTIZED[kind].rounds_inputs else None
    made = quantized(layer, Scales(kind, scale, smooth=smooth))
    roles = {"weight_scale": made.weight_scale, "bias": layer.bias, "smooth": smooth}
    roles |= {} if scale is None else {"input_scale": scale[None], "activations": kind}
    found, expected = reference.linear(x, made.codes, **roles)["y"], made(x)
    assert float((found - expected).abs().max() / expected.abs().max()) < REGROUPED

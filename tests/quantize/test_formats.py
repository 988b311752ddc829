"""Rounding to codes: bounds, exact values, and agreement with ONNX's own definition."""

import numpy as np
import pytest
import torch

from edgewam.quantize.formats import FORMATS, encode, rounded, rounded_dynamically, weight_scales


@pytest.mark.parametrize("name", FORMATS)
def test_codes_and_rounding_are_the_same_numbers(name):
    kind = FORMATS[name]
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)) * 3
    scale = torch.tensor(0.01)
    codes = encode(values, scale, kind)
    assert codes.dtype == kind.dtype
    torch.testing.assert_close(codes.float() * scale, rounded(values, scale, kind), rtol=0, atol=0)


def test_int8_rounds_half_to_even_and_saturates():
    values = torch.tensor([0.5, 1.5, -0.5, -1.5, 126.6, 300.0, -300.0])
    assert encode(values, torch.tensor(1.0), FORMATS["int8"]).tolist() == [0, 2, 0, -2, 127, 127, -128]


def test_fp8_saturates_at_448():
    assert rounded(torch.tensor([1e6, -1e6]), torch.tensor(1.0), FORMATS["fp8"]).tolist() == [448.0, -448.0]


def test_the_largest_weight_of_each_channel_is_kept_exactly():
    weight = torch.tensor([[1.0, -4.0], [0.5, 0.25], [0.0, 0.0]])
    scale = weight_scales(weight, None, None, FORMATS["int8"])
    assert encode(weight, scale[:, None], FORMATS["int8"]).abs().amax(1).tolist() == [127, 127, 0]


def test_a_bias_always_fits_int32():
    weight, bias, input_scale = torch.full((1, 4), 1e-9), torch.tensor([50.0]), torch.tensor(1e-4)
    scale = weight_scales(weight, bias, input_scale, FORMATS["int8"])
    assert abs(bias / (scale * input_scale)) < 2**31


@pytest.mark.parametrize("shift", [-3.0, 0.0, 2.5])
def test_dynamic_rounding_is_that_of_onnx(shift):
    onnx = pytest.importorskip("onnx", reason="needs edgewam[onnx]")
    from onnx.reference import ReferenceEvaluator

    values = (torch.randn(16, 24, generator=torch.Generator().manual_seed(2)) + shift).numpy()
    helper, t = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", t.FLOAT, values.shape)],
        [helper.make_tensor_value_info("y", t.FLOAT, None)],
    )
    expected = ReferenceEvaluator(helper.make_model(graph)).run(None, {"x": values})[0]
    found = rounded_dynamically(torch.from_numpy(values)).numpy()
    one_code = (max(values.max(), 0) - min(values.min(), 0)) / 255
    assert np.abs(found - expected).max() <= one_code * 1.001  # a value between two codes may fall to either
    assert (np.abs(found - expected) > 1e-5).mean() < 0.02
    assert np.abs(found - values).max() <= one_code


def test_dynamic_rounding_of_zeros_is_zeros():
    assert not rounded_dynamically(torch.zeros(3, 4)).any()

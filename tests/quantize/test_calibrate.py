"""Calibration with modelopt: its fake quantisation and our layers are the same arithmetic, and bad data are refused."""

import sys

import pytest
import torch

from edgewam.core.errors import EdgewamError, MissingExtraError
from edgewam.quantize.calibrate import calibrate, fake_quantized
from edgewam.quantize.formats import FORMATS
from edgewam.quantize.layers import find_layers, quantized, with_layers
from edgewam.quantize.record import Recording
from tests.quantize.toy import toy_recording, toy_stages

NAMES = {"int8": [("net", "conv"), ("net", "up"), ("net", "down")], "fp8": [("net", "up"), ("net", "down")]}
ALPHA, PERCENTILE = 0.5, 99.9


@pytest.fixture(scope="module")
def modelopt():
    return pytest.importorskip("modelopt.torch.quantization", reason="needs edgewam[quant]")


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_our_layers_compute_what_modelopt_computes(modelopt, kind):
    stages, recording = toy_stages(), toy_recording()
    theirs = fake_quantized(stages, NAMES[kind], FORMATS[kind], recording, ALPHA, PERCENTILE)["net"]
    scales = calibrate(stages, dict.fromkeys(NAMES[kind], kind), recording, ALPHA, PERCENTILE)
    layers = find_layers(stages)
    ours = with_layers(stages, {name: quantized(layers[name], s) for name, s in scales.items()})["net"].function
    for inputs in recording.calls["net"]:
        for a, b, plain in zip(ours(*inputs), theirs(*inputs), stages["net"].function(*inputs), strict=True):
            # a value between two codes may fall to either side, so a few outputs differ by a code of one input
            assert (a - b).abs().median() < 1e-5
            assert (a - b).norm() < 0.02 * b.norm()
            assert (a - plain).norm() < 0.1 * plain.norm()


def test_smoothing_is_for_int8_linear_layers_and_outputs_for_convolutions(modelopt):
    stages, recording = toy_stages(), toy_recording()
    formats = {("net", "conv"): "int8", ("net", "up"): "int8", ("net", "down"): "int8_dynamic"}
    found = calibrate(stages, formats, recording, ALPHA, PERCENTILE)
    assert found["net", "up"].smooth is not None and found["net", "conv"].smooth is None
    assert found["net", "up"].smooth[3] < 0.5 * found["net", "up"].smooth.median()  # the loud channel is turned down
    assert found["net", "conv"].output_scale is not None and found["net", "up"].output_scale is None
    assert found["net", "down"].input_scale is None


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_each_step_has_the_range_of_its_own_calls(modelopt, kind):
    stages, steps = toy_stages(), (1.0, 3.0, 0.5)
    groups = [toy_recording(4, scale).calls["net"] for scale in steps]
    calls = [call for together in zip(*groups, strict=True) for call in together]
    recording = Recording({"net": calls}, len(calls), "", rows={"net": [0, 1, 2] * 4})
    formats = dict.fromkeys(NAMES["fp8"], kind)
    scales = {p: calibrate(stages, formats, recording, 0.0, 100, per_step=p) for p in (True, False)}
    for name in formats:
        per_step, static = scales[True][name].input_scale, scales[False][name].input_scale
        assert per_step.shape == (3,) and static.shape == ()
        torch.testing.assert_close(per_step.max(), static, rtol=1e-2, atol=0)  # modelopt's histogram has bins
    up = scales[True]["net", "up"].input_scale
    torch.testing.assert_close(up / up[0], torch.tensor(steps), rtol=1e-2, atol=0)
    for name, channels in (("up", 64), ("down", 96)):
        smooth = scales[True]["net", name].smooth  # FP8 has no need of it: its codes are as fine for small numbers as for large
        assert smooth is None if kind == "fp8" else smooth.shape == (channels,)


def test_without_a_loop_there_is_one_scale(modelopt):
    found = calibrate(toy_stages(), {("net", "up"): "fp8"}, toy_recording(), ALPHA, PERCENTILE, per_step=True)
    assert found["net", "up"].input_scale.shape == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_stage_is_calibrated_in_float32_and_quantised_in_its_own_dtype(modelopt, dtype):
    stages, recording = toy_stages(), toy_recording()
    formats = {("net", "up"): "int8", ("net", "conv"): "int8"}
    expected = calibrate(stages, formats, recording, ALPHA, 100)
    stages["net"].function.to(dtype)
    halves = Recording({"net": [tuple(t.to(dtype) for t in call) for call in recording.calls["net"]]}, 6, "")
    found = calibrate(stages, formats, halves, ALPHA, 100)
    for name, scales in found.items():
        torch.testing.assert_close(scales.input_scale, expected[name].input_scale, rtol=0.02, atol=0)
    torch.testing.assert_close(found["net", "up"].smooth, expected["net", "up"].smooth, rtol=0.02, atol=0)
    layers = find_layers(stages)
    made = {name: quantized(layers[name], scales) for name, scales in found.items()}
    image, rows = halves.calls["net"][0]
    for name, x in ((("net", "up"), rows), (("net", "conv"), image)):
        exact, out = layers[name](x), made[name](x)
        assert out.dtype == dtype and 1e-4 < (out - exact).float().norm() / exact.float().norm() < 0.05


def test_the_percentile_cuts_the_tail(modelopt):
    stages, recording = toy_stages(), toy_recording()
    scales = [calibrate(stages, {("net", "conv"): "int8"}, recording, ALPHA, p)["net", "conv"].input_scale for p in (90, 100)]
    assert scales[0] < 0.8 * scales[1]


def test_calibration_leaves_the_policy_alone(modelopt, capsys):
    stages, recording = toy_stages(), toy_recording()
    before = {name: p.clone() for name, p in stages["net"].function.named_parameters()}
    calibrate(stages, {("net", "up"): "int8"}, recording, ALPHA, PERCENTILE)
    for name, parameter in stages["net"].function.named_parameters():
        assert torch.equal(parameter, before[name])
    assert not capsys.readouterr().out  # stdout belongs to --json


def test_weights_that_are_not_finite_are_refused(modelopt):
    stages = toy_stages()
    stages["net"].function.up.bias[0] = float("nan")
    with pytest.raises(EdgewamError, match=r"weights 'net\.up\.bias' are not finite"):
        calibrate(stages, {("net", "down"): "int8"}, toy_recording(), ALPHA, PERCENTILE)


def test_a_stage_that_never_ran_is_refused():
    with pytest.raises(EdgewamError, match="never ran the stages net"):
        calibrate(toy_stages(), {("net", "up"): "int8"}, Recording({}, 0, ""), ALPHA, PERCENTILE)


def test_without_modelopt_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelopt.torch.quantization", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgewam\[quant\]'"):
        calibrate(toy_stages(), {("net", "up"): "int8"}, toy_recording(), ALPHA, PERCENTILE)

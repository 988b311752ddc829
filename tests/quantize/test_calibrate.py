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

"""Quantised layers: close to what they replace, a quarter of its size, and never in the way of the original."""

import pytest
import torch

from edgewam.core.errors import ContractError
from edgewam.quantize.layers import Scales, as_float, exchanged, find_layers, quantized, quantized_layers, with_layers
from tests.quantize.toy import toy_recording, toy_stages

INPUTS = toy_recording(1).calls["net"][0]


def static(layer, x, **fields):
    out = layer(x)
    conv = {"output_scale": out.abs().max() / 127} if isinstance(layer, torch.nn.Conv2d) else {}
    return quantized(layer, Scales("int8", input_scale=x.abs().max() / 127, **conv, **fields))


def test_a_quantised_layer_is_close_to_its_original_and_not_equal():
    stages = toy_stages()
    layers = find_layers(stages)
    image, rows = INPUTS
    for name, x in ((("net", "conv"), image), (("net", "up"), rows)):
        expected, found = layers[name](x), static(layers[name], x)(x)
        error = (found - expected).abs().max() / expected.abs().max()
        assert 1e-4 < error < 0.1, name


def test_smoothing_tames_an_outlier_channel():
    layer = find_layers(toy_stages())["net", "up"]
    rows = INPUTS[1]
    smooth = (layer.weight.abs().amax(0) / rows.abs().amax(0)).sqrt()
    plain = static(layer, rows)
    smoothed = quantized(layer, Scales("int8", input_scale=(rows * smooth).abs().max() / 127, smooth=smooth))
    expected = layer(rows)
    assert (smoothed(rows) - expected).norm() < 0.7 * (plain(rows) - expected).norm()


def test_weights_take_a_quarter_of_their_bytes():
    stages = toy_stages()
    layers = find_layers(stages)
    made = {name: quantized(layer, Scales("int8_dynamic")) for name, layer in layers.items() if name[1] != "conv"}
    after = with_layers(stages, made)
    saved = stages["net"].cost.weight_bytes - after["net"].cost.weight_bytes
    weights = sum(layer.weight.numel() for name, layer in layers.items() if name in made)
    assert 2.8 * weights < saved < 3 * weights  # scales cost four bytes per output


def test_the_original_stages_stay_as_they_were():
    stages = toy_stages()
    before = stages["net"].function(*INPUTS)[0]
    made = {name: quantized(layer, Scales("int8_dynamic")) for name, layer in find_layers(stages).items() if name[1] != "conv"}
    after = with_layers(stages, made)
    assert not torch.equal(after["net"].function(*INPUTS)[0], before)
    assert torch.equal(stages["net"].function(*INPUTS)[0], before)
    assert set(quantized_layers(after["net"])) == {"up", "down"} and not quantized_layers(stages["net"])


def test_layers_are_put_back_whatever_happens():
    stages = toy_stages()
    before = stages["net"].function(*INPUTS)[0]
    layers = find_layers(stages)
    with (
        pytest.raises(ZeroDivisionError),
        exchanged(stages, {("net", "up"): quantized(layers["net", "up"], Scales("int8_dynamic"))}),
    ):
        assert not torch.equal(stages["net"].function(*INPUTS)[0], before)
        raise ZeroDivisionError
    assert torch.equal(stages["net"].function(*INPUTS)[0], before)


def test_exporters_get_plain_layers_with_rounded_weights():
    stages = toy_stages()
    layer = quantized(find_layers(stages)["net", "up"], Scales("int8_dynamic"))
    stage = with_layers(stages, {("net", "up"): layer})["net"]
    plain = as_float(stage).function.up
    assert type(plain) is torch.nn.Linear and torch.equal(plain.weight, layer.weight)
    assert torch.equal(layer.codes.float() * layer.weight_scale[:, None], layer.weight)


def test_a_stage_that_does_not_exist_is_refused():
    stages = toy_stages()
    layer = quantized(find_layers(stages)["net", "up"], Scales("int8_dynamic"))
    with pytest.raises(ContractError, match="no stage 'nat'"):
        with_layers(stages, {("nat", "up"): layer})


def test_weight_only_layers_round_nothing_that_comes_in():
    layer = find_layers(toy_stages())["net", "up"]
    made = quantized(layer, Scales("int8_weights"))
    rows = toy_recording(1).calls["net"][0][1]
    assert torch.equal(made.round_input(rows), rows)
    assert torch.equal(made(rows), torch.nn.functional.linear(rows, made.weight, layer.bias))
    assert not torch.equal(made.weight, layer.weight) and made.packed_bytes == layer.weight.numel() + 4 * len(layer.weight)

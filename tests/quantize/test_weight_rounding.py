"""GPTQ: codes of the same scales whose products are nearer to the float32 layer's than those of plain rounding."""

from __future__ import annotations

import pytest
import torch

from edgewam.core.errors import EdgewamError
from edgewam.quantize.formats import FORMATS, encode, weight_scales
from edgewam.quantize.layers import Scales, find_layers, quantized
from edgewam.quantize.record import Recording
from edgewam.quantize.weight_rounding import round_weights
from tests.quantize.toy import toy_recording, toy_stages

NAMES = [("net", "up"), ("net", "down")]
FARTHEST = 8  # codes of 127 that a weight may move to make up for others; plain rounding is 0 by definition
NEARER = 0.6  # error of the products, GPTQ over plain rounding; 0.3 here, where the inputs share most of their variance


@pytest.fixture(autouse=True)
def modelopt():
    pytest.importorskip("modelopt.torch.quantization", reason="needs edgewam[quant]")


def correlated() -> Recording:
    """Rows whose entries share most of what they are, as activations do."""
    generator = torch.Generator().manual_seed(2)
    shared = torch.randn(4, 64, generator=generator)
    calls = []
    for image, rows in toy_recording(12).calls["net"]:
        calls.append((image, torch.randn(len(rows), 4, generator=generator) @ shared * 0.5 + 0.2 * rows.clamp(-1, 1)))
    return Recording({"net": calls}, len(calls), "0" * 64)


def test_products_come_nearer_to_those_of_the_float32_layer_on_rows_that_were_not_recorded() -> None:
    stages, recording = toy_stages(), correlated()
    layer = find_layers(stages)["net", "up"]
    first = Recording({"net": recording.calls["net"][:9]}, 9, recording.digest)
    codes, scale = round_weights(stages, [("net", "up")], first)["net", "up"]
    errors = {}
    plain = quantized(layer, Scales("int8_weights"))
    for name, made in (("gptq", quantized(layer, Scales("int8_weights"), codes, scale)), ("plain", plain)):
        errors[name] = sum((made(rows) - layer(rows)).square().mean() for _, rows in recording.calls["net"][9:]).sqrt()
    assert errors["gptq"] < NEARER * errors["plain"]


def test_the_codes_are_int8_of_the_usual_scales_and_near_the_weights() -> None:
    stages = toy_stages()
    found = round_weights(stages, NAMES, correlated())
    assert list(found) == NAMES
    for name in NAMES:
        codes, scale = found[name]
        weight = find_layers(stages)[name].weight
        kind = FORMATS["int8_weights"]
        assert codes.dtype == torch.int8 and torch.equal(scale, weight_scales(weight, None, None, kind))
        moved = (codes.int() - encode(weight, scale[:, None], kind).int()).abs()
        assert 0 < moved.float().mean() < 1 and moved.max() <= FARTHEST


def test_rounding_leaves_the_policy_alone_and_needs_what_the_stage_saw() -> None:
    stages = toy_stages()
    before = {name: p.clone() for name, p in stages["net"].function.named_parameters()}
    round_weights(stages, NAMES, correlated())
    assert all(torch.equal(p, before[name]) for name, p in stages["net"].function.named_parameters())
    with pytest.raises(EdgewamError, match="never ran the stage net"):
        round_weights(stages, NAMES, Recording({}, 0, ""))


@pytest.mark.parametrize("kind", ["fp8_weights", "int4_weights"])
def test_weights_alone_come_nearer_on_their_own_grids(kind: str) -> None:
    stages, recording = toy_stages(), correlated()
    layer = find_layers(stages)["net", "up"]
    codes, scale = round_weights(stages, [("net", "up")], recording, None, FORMATS[kind])["net", "up"]
    assert torch.equal(scale, quantized(layer, Scales(kind)).weight_scale) and codes.dtype == FORMATS[kind].dtype
    errors = {}
    for name, made in (("gptq", quantized(layer, Scales(kind), codes, scale)), ("plain", quantized(layer, Scales(kind)))):
        errors[name] = sum((made(rows) - layer(rows)).square().mean() for _, rows in recording.calls["net"]).sqrt()
    assert errors["gptq"] < NEARER * errors["plain"]

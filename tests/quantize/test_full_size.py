"""The named plans at full size, on the meta device: which layers become eight bits for TensorRT, and which bytes are left."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgewam.cli._shipped import shipped
from edgewam.core.observation import Normalizer
from edgewam.models import aha_wam
from edgewam.models.wan_vae import WanVae, WanVaeConfig
from edgewam.models.wan_vae_image import image_encoder
from edgewam.quantize.layers import Scales, find_layers, quantized, with_layers
from edgewam.quantize.named import named_plan
from edgewam.quantize.steps import with_scale_rows
from edgewam.recipes.deploy import compile_plan
from edgewam.recipes.quantization import _unsteady_stages

STEPS = 2
SCALES_SHARE = 0.01  # of the codes' bytes: one float32 per output channel of 1024 and more inputs, and the activations'
# Linear layers of one block: the planner's last one stops after its keys and values.
BLOCK = ("out.#", "cross.#.query", "cross.#.out", "ffn.#.up", "ffn.#.down")
ROUTER = {"query_proj.#.#": 30, "delta_proj.#.#": 60, "visual.#": 2, "value.#": 2, "pooled.#": 2, "key.#": 1}
PLANNED = {
    **{("denoise", name): 30 for name in ("qkv.#.project", *BLOCK)},
    **{("planner", name): 29 for name in BLOCK},
    ("planner", "qkv.#.project"): 30,
    ("planner", "patch"): 1,
    **{("router", name): count for name, count in ROUTER.items()},
}


@pytest.fixture(scope="module")
def stages():
    with torch.device("meta"):
        model = aha_wam.build(aha_wam.full()).to(torch.bfloat16).requires_grad_(False)
        vae = WanVae(WanVaeConfig()).to(torch.bfloat16)
    unit = Normalizer(np.zeros(14, np.float32), np.ones(14, np.float32))
    return aha_wam.stages(model, image_encoder(vae), unit, unit)


def unsteady(stages):
    """As `quantize` finds them; the programs of every size call the same stages."""
    return _unsteady_stages(replace(compile_plan(shipped("student"), "eager"), stages=stages))


def planned(stages, name):
    layers = find_layers(stages)
    rules = named_plan(name, layers, unsteady(stages), "tensorrt").resolve(layers)
    return layers, {key: rule.format for key, rule in rules.items() if rule.format != "none"}


def test_what_runs_once_per_instruction_or_on_a_single_row_is_unsteady(stages):
    assert unsteady(stages) == {"text", "state"}


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_every_wide_linear_layer_of_the_chunk_and_the_refresh_is_planned(stages, name):
    _, formats = planned(stages, name)
    assert Counter((stage, re.sub(r"\d+", "#", path)) for stage, path in formats) == PLANNED
    assert set(formats.values()) == {name}


def test_what_stays_in_16_bits_is_narrow_unsteady_or_a_convolution(stages):
    layers, formats = planned(stages, "fp8")
    left = {key: layer for key, layer in layers.items() if key not in formats}
    assert {key for key in left if key[0] in ("denoise", "planner", "router")} == {("denoise", "encoder"), ("denoise", "head")}
    assert {key[0] for key in left} == {"denoise", "text", "state", "image_encoder"}
    assert all(isinstance(layer, torch.nn.Conv2d) for key, layer in left.items() if key[0] == "image_encoder")


def test_stages_take_half_their_bytes_and_one_more_input(stages):
    layers, formats = planned(stages, "fp8")
    scales = {"denoise": torch.ones(STEPS)}
    made = {key: quantized(layers[key], Scales(kind, scales.get(key[0], torch.ones(())))) for key, kind in formats.items()}
    after = with_scale_rows(with_layers(stages, made))
    for name in ("denoise", "planner", "router"):
        codes = sum(layer.weight.numel() for key, layer in made.items() if key[0] == name)
        kept = stages[name].cost.weight_bytes - 2 * codes
        assert codes < after[name].cost.weight_bytes - kept < (1 + SCALES_SHARE) * codes
        assert 0.49 < after[name].cost.weight_bytes / stages[name].cost.weight_bytes < 0.51
    assert after["denoise"].inputs[-1].shape == (180,) and after["planner"].inputs == stages["planner"].inputs

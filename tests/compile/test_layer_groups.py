"""A planner in layer groups is the same planner, bit for bit, and costs the same."""

import numpy as np
import pytest
import torch

from edgewam.compile.layer_groups import in_layer_groups
from edgewam.core.errors import EdgewamError
from edgewam.core.observation import Normalizer
from edgewam.models import aha_wam, toy_three
from edgewam.models.wan_vae import WanVae, WanVaeConfig
from edgewam.models.wan_vae_image import image_encoder
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.pipeline import Pipeline
from edgewam.runtime.torch_memory import TorchMemory
from tests.models import aha_wam_golden as golden


def _normalizer(size):
    return Normalizer(np.zeros(size, np.float32), np.ones(size, np.float32))


@pytest.fixture(scope="module")
def whole():
    torch.set_num_threads(1)
    model, config = golden.model().requires_grad_(False), golden.config()
    encoder = image_encoder(golden.vae())
    stages = aha_wam.stages(model, encoder, _normalizer(config.proprio_dim), _normalizer(config.action_dim), config.text_len)
    return stages, aha_wam.programs(model, 2, text_bucket=config.text_len)


def refreshes(stages, programs, count=8):
    """Contexts after refreshes past the overflow of the memory."""
    pipeline = Pipeline(programs, stages, {name: TorchEngine(stage) for name, stage in stages.items()}, TorchMemory("cpu"))
    rng = np.random.default_rng(0)
    config, found = golden.config(), []
    shapes = {spec.name: spec for spec in programs.programs["plan"].inputs}
    rows = {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in programs.programs["prompt"].inputs}
    pipeline.run("prompt", rows)
    for number in range(count):
        image = rng.integers(0, 256, shapes["image"].shape, dtype=np.uint8)
        bias = np.where(np.arange(config.memory_slots) < number, 0.0, -np.inf).astype(np.float32)
        angle = rng.standard_normal(shapes["frame_cos"].shape)
        pipeline.run(
            "plan",
            {
                "image": image, "memory_bias": bias, "slot": np.array([number % config.memory_slots]),
                "frame_cos": np.cos(angle).astype(np.float32), "frame_sin": np.sin(angle).astype(np.float32),
            },
        )  # fmt: skip
        found.append(pipeline.state("context"))
    return np.array(found)


@pytest.mark.parametrize("num_groups", [1, 2, golden.config().num_layers])
def test_groups_give_the_same_bits_past_the_overflow_of_the_memory(whole, num_groups):
    stages, programs = in_layer_groups(*whole, num_groups)
    programs.check(stages)
    assert sum(name.startswith("planner_") for name in stages) == num_groups and "planner" not in stages
    np.testing.assert_array_equal(refreshes(stages, programs), refreshes(*whole))


def test_at_full_size_the_groups_cost_what_the_whole_costs(whole):
    config = aha_wam.full()
    with torch.device("meta"):
        model, vae = aha_wam.build(config).bfloat16(), WanVae(WanVaeConfig()).bfloat16()
    units = _normalizer(14)
    stages = aha_wam.stages(model, image_encoder(vae), units, units)
    groups, _ = in_layer_groups(stages, whole[1], 6)  # the calls of the programs do not depend on the size
    parts = [stage.cost for name, stage in groups.items() if name.startswith("planner_")]
    one = stages["planner"].cost
    assert len(parts) == 6
    assert sum(part.flops for part in parts) == one.flops
    # every group holds its own copy of the constant matrix that turns rotary pairs, as the layers do
    assert sum(part.weight_bytes for part in parts) == one.weight_bytes
    hidden = 120 * 3072 * 4
    small = sum(stages["planner"].input(n).size_bytes for n in ("memory_bias", "key_bias", "frame_cos", "frame_sin"))
    assert sum(part.io_bytes for part in parts) == pytest.approx(one.io_bytes + 10 * hidden + 5 * small, rel=1e-6)


def test_a_number_of_groups_that_the_layers_do_not_have_and_another_family_are_refused(whole):
    with pytest.raises(EdgewamError, match="has 1 to"):
        in_layer_groups(*whole, golden.config().num_layers + 1)
    toy = toy_three.build()
    with pytest.raises(EdgewamError, match="no planner to split"):
        in_layer_groups(toy_three.stages(toy), toy_three.programs(toy, 2), 2)

"""What every model family must do: declare stages that compose to its plain forward, and programs that fit them.

A family is found by `core.plugins`; its case below says how to build it at test size and what its programs must give.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from edgewam.core import plugins
from edgewam.core.observation import Normalizer
from edgewam.core.program import Programs
from edgewam.core.rope import axis_rope, frame_rope
from edgewam.core.stage import Stage
from edgewam.flow.solver import euler_table
from edgewam.models import aha_wam, fast_wam, toy_three
from edgewam.models.aha_wam import host_config, programs, stages
from edgewam.models.aha_wam_stream import sample_chunk
from edgewam.models.wan_vae_image import image_encoder
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.pipeline import Pipeline
from tests.models import aha_wam_golden as golden
from tests.models import fast_wam_golden as fast


@dataclass(frozen=True)
class Case:
    """A family at test size: its stages, its programs for a number of steps."""

    stages: Mapping[str, Stage]
    programs: Callable[[int], Programs]


def aha_wam_case() -> Case:
    model = golden.model().requires_grad_(False)
    built = stages(model, image_encoder(golden.vae()), STATES, ACTIONS, BUCKET)
    return Case(built, lambda steps: programs(model, steps, text_bucket=BUCKET))


def fast_wam_case() -> Case:
    model = fast.model().requires_grad_(False)
    bucket = fast.config().text_len
    built = fast_wam.stages(model, image_encoder(golden.vae()), STATES, ACTIONS, bucket)
    return Case(built, lambda steps: fast_wam.programs(model, steps, text_bucket=bucket))


def toy_three_case() -> Case:
    model = toy_three.build()
    return Case(toy_three.stages(model), lambda steps: toy_three.programs(model, steps))


CASES = {"aha_wam": aha_wam_case, "fast_wam": fast_wam_case, "toy_three": toy_three_case}


def _normalizer(size: int, seed: int) -> Normalizer:
    rng = np.random.default_rng(seed)
    return Normalizer(rng.normal(size=size).astype(np.float32), rng.uniform(0.5, 1.5, size).astype(np.float32))


STATES = _normalizer(golden.config().proprio_dim, 1)
ACTIONS = _normalizer(golden.config().action_dim, 2)
BUCKET = golden.config().text_len  # holds every prompt


@pytest.fixture(scope="module")
def cases():
    torch.set_num_threads(1)
    return {name: build() for name, build in CASES.items()}


def test_every_family_has_a_case():
    assert set(CASES) == set(plugins.names("family"))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("steps", [1, 3])
def test_programs_fit_the_stages_and_survive_json(cases, name, steps):
    declared = cases[name].programs(steps)
    declared.check(cases[name].stages)
    again = Programs.from_json(declared.to_json(), declared.constants)
    again.check({key: Stage.from_json(stage.to_json()) for key, stage in cases[name].stages.items()})
    assert again.to_json() == declared.to_json()


@pytest.mark.parametrize("name", CASES)
def test_costs_are_positive_and_io_is_what_the_specs_say(cases, name):
    for stage in cases[name].stages.values():
        assert stage.cost.io_bytes == sum(spec.size_bytes for spec in (*stage.inputs, *stage.outputs))
        assert stage.cost.weight_bytes >= 0 and stage.cost.flops >= 0
    assert sum(stage.cost.flops for stage in cases[name].stages.values()) > 0


class Robot:
    """The host's part of AHA-WAM, as a runtime does it: rope rows, ring slots, packed text."""

    def __init__(self, case: Case, steps: int, prompt: np.ndarray, bucket: int = BUCKET) -> None:
        self.bucket, self.host = bucket, host_config(golden.config(), bucket)
        engines = {name: TorchEngine(stage) for name, stage in case.stages.items()}
        self.pipeline = Pipeline(case.programs(steps), case.stages, engines)
        self.instruct(prompt)
        self.refreshes = 0

    def instruct(self, prompt: np.ndarray) -> None:
        self.pipeline.run("prompt", aha_wam.prompt_inputs(golden.config(), prompt, self.bucket))

    def plan(self, image: np.ndarray, frame_id: int) -> None:
        slots = self.host["memory_slots"]
        cos, sin = frame_rope(frame_id, tuple(self.host["grid"]), tuple(self.host["rope_dims"]), self.host["rope_theta"])
        bias = np.where(np.arange(slots) < self.refreshes, 0.0, -np.inf).astype(np.float32)
        slot = np.array([self.refreshes % slots])
        self.pipeline.run("plan", {"image": image, "memory_bias": bias, "slot": slot, "frame_cos": cos, "frame_sin": sin})
        self.refreshes += 1

    def act(self, image, state, noise, chunk, prefix=None, mask=None) -> np.ndarray:
        size = self.host["chunk_size"]
        positions = chunk * size + np.arange(size)
        cos, sin = axis_rope(positions, self.host["head_dim"], self.host["rope_theta"])
        inputs = {
            "image": image, "state": state, "noise": noise, "chunk_cos": cos, "chunk_sin": sin,
            "prefix": np.zeros_like(noise) if prefix is None else prefix,
            "prefix_mask": np.zeros(size, dtype=bool) if mask is None else mask,
        }  # fmt: skip
        return self.pipeline.run("act", inputs)["actions"]


def _hwc(image) -> np.ndarray:
    return np.ascontiguousarray(image.numpy().transpose(1, 2, 0))


def planned_robot(case: Case, steps: int) -> Robot:
    """A robot that went through all stored refreshes, past the overflow of its memory."""
    data = golden.arrays("prefill_memory")
    robot = Robot(case, steps, data["text.context"][0].numpy())
    for i in golden.indices("prefill_memory", r"refresh(\d+)\."):
        robot.plan(_hwc(data[f"refresh{i}.image_u8"][0]), int(data[f"refresh{i}.frame_index"]))
    return robot


def act_on_golden(robot: Robot, chunk: int, **prefix) -> np.ndarray:
    data, size = golden.arrays("sampler_streaming"), golden.config().chunk_size
    noise = data["start_noise_full_horizon"][0, chunk * size : (chunk + 1) * size].numpy()
    state = STATES.backward(data["chunk_proprio"][chunk].numpy())
    robot.instruct(data["text.context"][0].numpy())
    return robot.act(_hwc(data["chunk_obs_images_u8"][chunk]), state, noise, chunk, **prefix)


def test_the_ring_memory_gives_the_released_planner_context_past_the_overflow(cases):
    data, robot = (
        golden.arrays("prefill_memory"),
        Robot(cases["aha_wam"], 1, golden.arrays("prefill_memory")["text.context"][0].numpy()),
    )
    for i in golden.indices("prefill_memory", r"refresh(\d+)\."):
        robot.plan(_hwc(data[f"refresh{i}.image_u8"][0]), int(data[f"refresh{i}.frame_index"]))
        expected = torch.stack([torch.cat(kv) for kv in golden.layers("prefill_memory", f"refresh{i}")]).numpy()
        np.testing.assert_allclose(robot.pipeline.state("context"), expected, atol=golden.STAGE_ATOL, rtol=0)


@pytest.mark.parametrize("steps", golden.indices("sampler_streaming", r"steps(\d+)\."))
def test_programs_give_the_released_actions(cases, steps):
    data, robot = golden.arrays("sampler_streaming"), planned_robot(cases["aha_wam"], steps)
    for chunk in golden.indices("sampler_streaming", rf"steps{steps}\.chunk(\d+)\."):
        expected = data[f"steps{steps}.chunk{chunk}.actions_normalized"].numpy()
        normalised = (act_on_golden(robot, chunk) - ACTIONS.mean) / ACTIONS.std
        np.testing.assert_allclose(normalised, expected, atol=golden.SAMPLER_ATOL, rtol=0)


def test_an_empty_prefix_mask_changes_no_bit_and_a_set_one_fixes_its_rows(cases):
    robot = planned_robot(cases["aha_wam"], 2)
    plain = act_on_golden(robot, 0)
    mask = np.zeros(len(plain), dtype=bool)
    garbage = np.full_like(plain, np.nan)
    assert np.array_equal(act_on_golden(robot, 0, prefix=garbage, mask=mask), plain)
    mask[0] = True
    prefix = np.broadcast_to(ACTIONS.mean, plain.shape).astype(np.float32)
    fixed = act_on_golden(robot, 0, prefix=prefix, mask=mask)
    np.testing.assert_allclose(fixed[0], prefix[0], atol=1e-6, rtol=0)  # one normalisation and back
    assert np.abs(fixed[1:] - plain[1:]).max() > 1e-3


def test_a_prefix_through_programs_equals_the_plain_sampler(cases):
    data, model, size = golden.arrays("sampler_streaming"), golden.model().requires_grad_(False), golden.config().chunk_size
    wanted = torch.linspace(-1, 1, size * golden.config().action_dim).reshape(1, size, -1)
    mask = torch.arange(size)[None] < size // 2
    routed = model.route(golden.encode_images(data["chunk_obs_images_u8"][:1]), golden.layers("ovcr", "planner"))
    text = model.executor_text(data["text.context"], data["chunk_proprio"][:1])
    noise = data["start_noise_full_horizon"][:, :size]
    expected = sample_chunk(model, noise, euler_table(2, model.config.shift), 0, routed, text, wanted, mask)[-1][0].numpy()
    robot = planned_robot(cases["aha_wam"], 2)
    found = act_on_golden(robot, 0, prefix=ACTIONS.backward(wanted[0].numpy()), mask=mask[0].numpy())
    np.testing.assert_allclose((found - ACTIONS.mean) / ACTIONS.std, expected, atol=golden.SAMPLER_ATOL, rtol=0)


def test_a_larger_text_bucket_gives_the_same_actions(cases):
    model, data = golden.model().requires_grad_(False), golden.arrays("prefill_memory")
    bucket = BUCKET + 2
    built = stages(model, image_encoder(golden.vae()), STATES, ACTIONS, bucket)
    larger = Case(built, lambda steps: programs(model, steps, text_bucket=bucket))
    results = []
    for case, size in ((cases["aha_wam"], BUCKET), (larger, bucket)):
        robot = Robot(case, 2, data["text.context"][0].numpy(), size)
        robot.plan(_hwc(data["refresh0.image_u8"][0]), 0)
        results.append(act_on_golden(robot, 0))
    np.testing.assert_allclose(*results, atol=golden.STAGE_ATOL, rtol=0)


def test_stages_leave_the_model_as_it_was():
    model = golden.model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stages(model, image_encoder(golden.vae()), STATES, ACTIONS)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_full_size_stages_build_on_the_meta_device_and_count_the_published_work():
    with torch.device("meta"):
        model = aha_wam.build(aha_wam.full()).to(torch.bfloat16)
    encoder = torch.nn.Module()
    encoder.forward = lambda image: torch.empty(1, 48, 24, 20, device="meta")
    unit = Normalizer(np.zeros(14, np.float32), np.ones(14, np.float32))
    built = stages(model, encoder, unit, unit)
    # facts/aha_wam.md 8: one hoisted step is 27.7 GFLOP on 817.9M weights; the editor and observation encoder 297.8 GFLOP
    assert built["denoise"].cost.flops == pytest.approx(27.7e9, rel=0.02)
    assert built["denoise"].cost.weight_bytes == pytest.approx(2 * 817.9e6, rel=0.01)
    assert built["router"].cost.flops == pytest.approx(297.8e9, rel=0.01)
    assert built["planner"].cost.flops == pytest.approx(1050e9, rel=0.05)
    assert built["planner"].input("memory").size_bytes == 6 * 30 * 2 * 120 * 3072 * 2


def test_a_prompt_padded_otherwise_than_in_training_is_refused():
    with pytest.raises(ValueError, match="trained with"):
        aha_wam.prompt_inputs(golden.config(), np.ones((golden.config().text_len + 1, golden.config().text_dim)))

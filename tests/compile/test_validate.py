"""Validate two bundles of a tiny AHA-WAM: an engine against eager, a changed student against its teacher."""

from dataclasses import replace

import numpy as np
import pytest

from edgewam.compile.compile import compile_bundle
from edgewam.compile.excess_error import ExcessErrorLimits
from edgewam.compile.frames import Frame, FrameSampler, dataset_frames
from edgewam.compile.plan import plan_policy
from edgewam.compile.validate import QUANTIZED_STAGE_TOLERANCE, STAGE_TOLERANCE, stage_tolerance, validate
from edgewam.core.errors import ArtifactError, ContractError, GateError
from edgewam.robot_bridge.policy import Ablatable, Policy, open_policy
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.measure import profile_bundle
from edgewam.runtime.policies.aha_wam_host import HostConfig
from edgewam.runtime.policies.host_section import synthetic_observation
from tests.runtime.tiny_aha_wam import PROMPT, tiny_parts


@pytest.fixture(scope="module")
def parts():
    return tiny_parts()


def compiled(parts, path, backend, num_steps=2):
    model, encoder, state, action, text = parts
    plan = plan_policy(
        "aha_wam", model, backend, num_action_steps=num_steps, prompts={PROMPT: text}, threads=1,
        stage_arguments={"image_encoder": encoder, "state_normalizer": state, "action_normalizer": action},
        host={"offset_trained": True, "action_std": action.std.tolist()},
    )  # fmt: skip
    return Bundle.open(compile_bundle(plan, path / f"{backend}{num_steps}"), threads=1)


@pytest.fixture(scope="module")
def bundles(parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles")
    return {name: compiled(parts, path, *name) for name in (("eager", 2), ("onnxruntime", 2), ("eager", 1))}


@pytest.fixture(scope="module")
def frames(bundles):
    host = HostConfig.of(bundles["eager", 2])
    return [Frame(synthetic_observation(host, tick), PROMPT) for tick in range(3)]


def test_an_engine_passes_both_gates_against_eager(bundles, frames):
    report = validate(bundles["onnxruntime", 2], bundles["eager", 2], frames=frames)
    report.require()
    data = report.to_json()
    assert data["stages"]["passed"] and data["actions"]["passed"]
    assert set(data["stages"]["stages"]) == set(bundles["eager", 2].stages)
    assert 0 < data["actions"]["median"] < 1e-4 and data["actions"]["spread_rms_median"] > 0.1
    assert len(data["actions"]["ratio_per_dim"]) == 14


def test_a_whole_two_step_chunk_is_within_1e_4_of_eager(bundles):
    actions = []
    for name in (("eager", 2), ("onnxruntime", 2)):
        policy = bundles[name].open_policy()
        policy.reset(PROMPT, seed=1)
        actions.append([policy.infer(synthetic_observation(policy.host, tick)).actions for tick in (0, 16, 32, 48)])
    np.testing.assert_allclose(actions[1], actions[0], rtol=0, atol=1e-4)


def test_another_sampler_fails_gate_two_and_passes_gate_one(bundles, frames):
    report = validate(bundles["eager", 1], bundles["eager", 2], frames=frames)
    assert report.stages.first_failure is None
    assert report.actions.median > 0.01
    with pytest.raises(GateError, match="Excess error ratio"):
        report.require()
    replace(report, limits=ExcessErrorLimits(1e3, 1e3)).require()


def test_gates_that_are_not_asked_for_do_not_run(bundles):
    report = validate(bundles["onnxruntime", 2], bundles["eager", 2], stages=False)
    assert report.to_json()["stages"] is None and report.to_json()["actions"] is None
    report.require()


def test_bundles_with_other_stages_or_prompts_are_refused(bundles, frames):
    reference = bundles["eager", 2]
    fewer = replace(reference, stages={name: s for name, s in reference.stages.items() if name != "router"})
    with pytest.raises(ContractError, match=r"different stages \(router\)"):
        validate(fewer, reference)
    with pytest.raises(ContractError, match="not both bundles know"):
        validate(replace(reference, prompts={}), reference, stages=False, frames=frames)


class FakeDataset:
    """Two episodes whose states tell where they are."""

    num_episodes, lengths, cameras = 2, np.array([5, 9]), ("cam_high",)

    def task(self, episode):
        return ("lift", "push")[episode]

    def states(self, episode):
        return np.arange(self.lengths[episode], dtype=np.float32)[:, None] + 100 * episode

    def frames(self, episode, camera, indices):
        return np.array([np.full((2, 2, 3), 10 * episode + i, np.uint8) for i in indices])


class TellingPolicy:
    """Answers with the instruction it was last reset to."""

    def __init__(self):
        self.resets = []

    def reset(self, prompt, seed):
        self.resets.append(prompt)

    def sample(self, observation, noise):
        return self.resets[-1]


def test_every_frame_is_sampled_with_its_own_instruction():
    frames = [Frame(None, prompt) for prompt in ("lift", "lift", "push", "lift")]
    own, fixed = FrameSampler(TellingPolicy()), FrameSampler(TellingPolicy(), "wave")
    assert [own(frame, None) for frame in frames] == ["lift", "lift", "push", "lift"]
    assert own.policy.resets == ["lift", "push", "lift"]
    assert [fixed(frame, None) for frame in frames] == ["wave"] * 4 and fixed.policy.resets == ["wave"]


def test_frames_of_a_dataset_belong_together_and_repeat_with_the_seed():
    frames = dataset_frames(FakeDataset(), 20, seed=1)
    for frame in frames:
        episode, tick = divmod(int(frame.observation.state[0]), 100)
        assert frame.prompt == ("lift", "push")[episode]
        assert frame.observation.tick == tick and frame.observation.images["cam_high"][0, 0, 0] == 10 * episode + tick
    again = dataset_frames(FakeDataset(), 20, seed=1)
    ticks = [frame.observation.tick for frame in frames]
    assert ticks == [frame.observation.tick for frame in again] and len(set(ticks)) > 3
    with pytest.raises(ContractError, match="at least one frame"):
        dataset_frames(FakeDataset(), 0)


def test_a_profile_has_every_program_and_figure_of_the_contract(bundles):
    profiles = profile_bundle(bundles["onnxruntime", 2], n=3, warmup=1)
    assert set(profiles) == {"prompt", "plan", "act", "L_chunk", "L_prefill", "L_compose"}
    act = profiles["act"]
    assert act.calls["denoise"] == 2 and set(act.stages) == {"image_encoder", "router", "state", "begin", "denoise", "finish"}
    contract = act.contract
    assert (contract.engine, contract.precision, contract.steps, contract.threads) == ("onnxruntime", "fp32", 2, 1)
    assert contract.artifact == bundles["onnxruntime", 2].digest and contract.shapes["state"] == (14,)
    chunk = profiles["L_chunk"].contract
    assert (chunk.steps, chunk.stages, chunk.shapes) == (2, contract.stages, contract.shapes)
    assert profiles["L_compose"].contract.stages == ("L_compose",)
    assert act.total.p50_ms > 0 and "denoise" in act.text()
    assert bundles["onnxruntime", 2].pipeline.on_stage is None
    assert set(profile_bundle(bundles["onnxruntime", 2], n=1, warmup=0, programs=["act"])) == {"act"}


def test_a_bundle_that_was_never_written_cannot_be_profiled(bundles):
    with pytest.raises(ArtifactError, match="opened from a directory"):
        profile_bundle(replace(bundles["eager", 2], path=None), n=1)
    with pytest.raises(ArtifactError, match="opened from a directory"):
        validate(bundles["eager", 2], replace(bundles["eager", 2], path=None))


def test_the_bridge_opens_a_bundle_by_its_dotted_factory(bundles):
    path = str(bundles["onnxruntime", 2].path)
    factory, arguments = "edgewam.runtime.factory.open_policy", {"bundle": path, "threads": 1}
    policy = open_policy(factory, arguments)
    assert isinstance(policy, Policy) and isinstance(policy, Ablatable)
    blind = open_policy(factory, arguments, ablate=["images"])
    forgetful = open_policy(factory, arguments, ablate=["memory", "router"])
    chunks = []
    for one in (policy, blind, forgetful):
        one.reset(PROMPT, 2)
        chunks.append(one.infer(synthetic_observation(policy.host, 0)).actions)
    assert np.abs(chunks[0] - chunks[1]).max() > 1e-3 and np.abs(chunks[0] - chunks[2]).max() > 1e-3


def test_gate_1_allows_what_the_number_formats_cost():
    assert stage_tolerance("fp32") == STAGE_TOLERANCE
    assert STAGE_TOLERANCE < stage_tolerance("fp16") < stage_tolerance("bf16") < QUANTIZED_STAGE_TOLERANCE
    for precision in ("int8", "fp8+int8", "int8+bf16"):
        assert stage_tolerance(precision) == QUANTIZED_STAGE_TOLERANCE

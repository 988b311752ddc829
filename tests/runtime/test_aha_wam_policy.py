"""The host side of AHA-WAM against plain streaming inference: positions, noise rows, memory slots, prefixes, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgewam.core.errors import ContractError, EdgewamError
from edgewam.core.rope import axis_rope, frame_rope
from edgewam.flow.solver import euler_table
from edgewam.models import aha_wam
from edgewam.models.aha_wam_stream import PlannerMemory, prefill, sample_chunk
from edgewam.models.text import pack_context
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.pipeline import Pipeline
from edgewam.runtime.policies.aha_wam import AhaWamPolicy, rehearse, timed_calls
from edgewam.runtime.policies.aha_wam_host import HostConfig
from edgewam.runtime.policies.host_section import synthetic_observation
from tests.runtime.tiny_aha_wam import MEMORY_SLOTS, PROMPT, tiny_parts

ATOL = 2e-5  # float32 sums in another order, actions of order one


@pytest.fixture(scope="module")
def parts():
    return tiny_parts()


def make_bundle(parts, num_steps=2, **host):
    model, encoder, state, action, text = parts
    stages = aha_wam.stages(model, encoder, state, action)
    engines = {name: TorchEngine(stage) for name, stage in stages.items()}
    pipeline = Pipeline(aha_wam.programs(model, num_steps), stages, engines)
    settings = aha_wam.host_config(model.config) | {"offset_trained": True, "action_std": action.std.tolist()} | host
    rows, bias = pack_context(text, settings["text_bucket"])
    prompts = {PROMPT: {"text_rows": rows, "text_bias": bias}}
    return Bundle("aha_wam", "eager", "aha_wam", settings, stages, engines, pipeline, prompts)


@pytest.fixture
def bundle(parts):
    return make_bundle(parts)


@pytest.fixture
def policy(bundle):
    policy = AhaWamPolicy(bundle)
    policy.reset(PROMPT, seed=3)
    return policy


def look(policy, tick):
    return synthetic_observation(policy.host, tick)


class Streaming:
    """The released inference, written plainly, driven by the same decisions."""

    def __init__(self, parts, seed):
        self.model, self.encoder, self.state, self.action, text = parts
        self.text = torch.from_numpy(text)[None]
        self.memory, self.seed, self.num_refreshes = PlannerMemory(MEMORY_SLOTS), seed, 0

    def latent(self, policy, observation):
        return self.encoder(torch.from_numpy(policy.compose(observation)))

    def plan(self, policy, observation):
        config = self.model.config
        frame = observation.tick // config.rope_stride
        self.context = prefill(self.model, self.latent(policy, observation), self.text, frame, self.memory)
        rng = np.random.default_rng((self.seed, self.num_refreshes))
        self.noise = torch.from_numpy(rng.standard_normal((config.horizon, 14), np.float32))
        self.num_refreshes += 1

    def act(self, policy, observation, chunk, prefix=None):
        size = self.model.config.chunk_size
        routed = self.model.route(self.latent(policy, observation), self.context)
        proprio = torch.from_numpy(self.state.forward(observation.state))[None]
        words = self.model.executor_text(self.text, proprio)
        given, mask = None, None
        if prefix is not None:
            given, mask = torch.zeros(1, size, 14), torch.zeros(1, size, dtype=torch.bool)
            given[0, : len(prefix)] = torch.from_numpy(self.action.forward(prefix))
            mask[0, : len(prefix)] = True
        noise = self.noise[None, chunk * size : (chunk + 1) * size]
        states = sample_chunk(self.model, noise, euler_table(2), chunk, routed, words, given, mask)
        return self.action.backward(states[-1][0].numpy())


@torch.no_grad()
def test_an_episode_equals_plain_streaming_inference_beyond_memory_overflow(parts, policy):
    # refreshes at 0, 32, 64, ... (2 slots: the third refresh overwrites the first), chunks every 16 ticks
    stream = Streaming(parts, seed=3)
    for number, tick in enumerate(range(0, 160, 16)):
        observation = look(policy, tick)
        if number % 2 == 0:
            stream.plan(policy, observation)
        chunk = policy.infer(observation)
        np.testing.assert_allclose(chunk.actions, stream.act(policy, observation, number % 2), rtol=0, atol=ATOL)
        assert (chunk.start_tick, chunk.observation_tick) == (tick, tick) and chunk.actions.dtype == np.float32


def test_the_planner_sees_only_differences_of_ticks_however_far_they_are(parts, policy):
    # 1_000_000 ticks are temporal position 125_000, past every released table.  Keys turn with the position, values do
    # not: they only depend on how far apart the remembered frames are.
    late = AhaWamPolicy(make_bundle(parts))
    late.reset(PROMPT, seed=3)
    for tick in (0, 32, 64):
        policy.plan(look(policy, tick))
        late.plan(replace(look(policy, tick), tick=tick + 1_000_000))
    early, far = policy._pipeline.state("context"), late._pipeline.state("context")
    np.testing.assert_allclose(far[:, 1], early[:, 1], rtol=0, atol=ATOL)
    assert np.abs(far[:, 0] - early[:, 0]).max() > 0.1
    assert np.isfinite(late.act(replace(look(policy, 64), tick=1_000_064)).actions).all()


def test_a_chunk_between_the_grid_takes_the_rows_of_its_index(policy):
    seen = {}
    run = policy._pipeline.run

    def spy(program, inputs):
        seen[program] = inputs
        return run(program, inputs)

    policy._pipeline.run = spy
    policy.plan(look(policy, 40))
    noise = policy._refreshes.context.noise
    for tick, index in ((40, 0), (55, 0), (56, 1), (71, 1), (72, 2), (87, 2)):
        policy.act(look(policy, tick))
        np.testing.assert_array_equal(seen["act"]["noise"], noise[16 * index : 16 * index + 16])
        cos, _ = axis_rope(np.arange(16 * index, 16 * index + 16), policy.host.head_dim, policy.host.rope_theta)
        np.testing.assert_array_equal(seen["act"]["chunk_cos"], cos)
    frame = frame_rope(5, policy.host.grid, policy.host.rope_dims, policy.host.rope_theta)  # 40 // 8
    np.testing.assert_array_equal(seen["plan"]["frame_sin"], frame[1])


def test_beyond_the_horizon_there_is_no_chunk(policy):
    policy.plan(look(policy, 10))
    policy.act(look(policy, 10 + 47))
    with pytest.raises(EdgewamError, match="its horizon is 48"):
        policy.act(look(policy, 10 + 48))
    with pytest.raises(EdgewamError, match="-1 ticks after"):
        policy.act(look(policy, 9))


def test_weights_without_offsets_start_on_the_grid_only(parts):
    policy = AhaWamPolicy(make_bundle(parts, offset_trained=False))
    policy.reset(PROMPT, seed=0)
    policy.plan(look(policy, 0))
    policy.act(look(policy, 16))
    with pytest.raises(EdgewamError, match="train with offsets"):
        policy.act(look(policy, 17))
    policy.infer(look(policy, 17))  # refreshes instead
    assert policy.context_tick == 17


def test_infer_refreshes_when_due(policy):
    ticks = []
    for tick in (0, 8, 16, 24, 31, 32, 40, 64):
        policy.infer(look(policy, tick))
        ticks.append(policy.context_tick)
    assert ticks == [0, 0, 0, 0, 0, 32, 32, 64]


def test_seed_and_prompt_decide_everything(parts, policy):
    again = AhaWamPolicy(make_bundle(parts))
    again.reset(PROMPT, seed=3)
    first, same = policy.infer(look(policy, 0)).actions, again.infer(look(policy, 0)).actions
    np.testing.assert_array_equal(first, same)
    again.reset(PROMPT, seed=4)
    assert np.abs(again.infer(look(policy, 0)).actions - first).max() > 1e-2
    with pytest.raises(EdgewamError, match="edgewam prompt add"):
        again.reset("dance", seed=0)


def test_noise_changes_with_every_refresh(policy):
    policy.infer(look(policy, 0))
    first = policy._refreshes.context.noise
    policy.infer(look(policy, 32))
    assert np.abs(first - policy._refreshes.context.noise).max() > 0.1


@torch.no_grad()
def test_a_prefix_stays_and_changes_the_rest_as_in_plain_inference(parts):
    policy = AhaWamPolicy(make_bundle(parts, prefix_trained=True))
    policy.reset(PROMPT, seed=3)
    stream = Streaming(parts, seed=3)
    observation = look(policy, 0)
    policy.plan(observation)
    stream.plan(policy, observation)
    free = policy.act(observation).actions
    prefix = np.clip(free[:5] + 0.3, -1, 1)
    chunk = policy.act(observation, prefix).actions
    np.testing.assert_allclose(chunk[:5], prefix, rtol=0, atol=1e-6)
    np.testing.assert_allclose(chunk, stream.act(policy, observation, 0, prefix), rtol=0, atol=ATOL)
    assert np.abs(chunk[5:] - free[5:]).max() > 1e-3
    with pytest.raises(ContractError, match="k <= 16"):
        policy.act(observation, np.zeros((17, 14), np.float32))


def test_a_prefix_is_refused_for_weights_not_trained_with_one(policy):
    policy.plan(look(policy, 0))
    with pytest.raises(EdgewamError, match="not trained with action prefixes"):
        policy.act(look(policy, 0), np.zeros((3, 14), np.float32))


@pytest.mark.parametrize("part", ["memory", "router"])
def test_ablated_parts_change_the_actions(parts, policy, part):
    without = AhaWamPolicy(make_bundle(parts))
    without.ablate(part)
    without.reset(PROMPT, seed=3)
    for tick in (0, 32):
        full, cut = policy.infer(look(policy, tick)).actions, without.infer(look(policy, tick)).actions
    assert np.abs(full - cut).max() > 5 * ATOL


def test_an_unknown_ablation_lists_what_there_is(policy):
    with pytest.raises(EdgewamError, match="memory, router"):
        policy.ablate("wheels")


def test_observations_before_reset_are_refused(bundle):
    with pytest.raises(EdgewamError, match="reset"):
        AhaWamPolicy(bundle).infer(synthetic_observation(HostConfig.of(bundle), 0))


def test_a_state_of_another_size_is_refused(policy):
    observation = look(policy, 0)
    policy.plan(observation)
    with pytest.raises(ContractError, match="'state' must be float32"):
        policy.act(replace(observation, state=np.zeros(7, np.float32)))


def test_a_host_section_without_a_field_is_refused(parts):
    bundle = make_bundle(parts)
    with pytest.raises(ContractError, match="rope_stride"):
        AhaWamPolicy(replace(bundle, host={k: v for k, v in bundle.host.items() if k != "rope_stride"}))


def test_samples_depend_on_frame_and_noise_only(parts, policy):
    noise = np.random.default_rng(0).standard_normal((48, 14)).astype(np.float32)
    first = policy.sample(look(policy, 0), noise)
    other_noise = policy.sample(look(policy, 1), -noise)
    np.testing.assert_array_equal(policy.sample(look(policy, 0), noise), first)
    assert np.abs(other_noise - first).max() > 1e-2
    # in units of the action's std
    policy.reset(PROMPT, 0)
    policy.plan_canvas(policy.compose(look(policy, 0)), 0, noise)
    np.testing.assert_allclose(first * parts[3].std, policy.act(look(policy, 0)).actions, rtol=0, atol=1e-6)
    with pytest.raises(EdgewamError, match="std"):
        other = AhaWamPolicy(make_bundle(parts, action_std=[]))
        other.reset(PROMPT, 0)
        other.sample(look(other, 0), noise)


def test_rehearsal_runs_every_program_and_timed_calls_run(bundle):
    names = []
    run = bundle.pipeline.run
    bundle.pipeline.run = lambda program, inputs: (names.append(program), run(program, inputs))[1]
    rehearse(bundle)
    assert names == ["prompt", "plan", "act", "act", "plan", "act", "plan", "act"]
    calls = timed_calls(bundle)
    assert set(calls) == {"L_chunk", "L_prefill", "L_compose"}
    for call in calls.values():
        call()
    with pytest.raises(EdgewamError, match="--prompt"):
        rehearse(replace(bundle, prompts={}))


def test_the_context_is_refreshed_as_often_as_asked(parts):
    bundle = make_bundle(parts)
    chunk, horizon = bundle.host["chunk_size"], bundle.host["horizon"]
    for every in (chunk, 2 * chunk, horizon):
        policy = AhaWamPolicy(bundle)
        policy.refresh_every(every)
        policy.reset(PROMPT, seed=0)
        refreshed = []
        for tick in range(0, 4 * horizon, chunk):
            before = policy._refreshes.count
            policy.infer(synthetic_observation(policy.host, tick))
            refreshed += [tick] if policy._refreshes.count > before else []
        assert refreshed == list(range(0, 4 * horizon, every))


@pytest.mark.parametrize("ticks", [0, 1, 10_000])
def test_a_refresh_that_no_horizon_covers_is_refused(parts, ticks):
    with pytest.raises(EdgewamError, match=r"choose from \d+ .a chunk. to \d+ .the horizon."):
        AhaWamPolicy(make_bundle(parts)).refresh_every(ticks)


def test_without_offsets_a_refresh_stays_on_the_grid_of_chunks(parts):
    policy = AhaWamPolicy(make_bundle(parts, offset_trained=False))
    with pytest.raises(EdgewamError, match=f"multiple of {policy.host.chunk_size}"):
        policy.refresh_every(policy.host.chunk_size + 1)

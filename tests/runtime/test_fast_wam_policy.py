"""A Fast-WAM bundle drives the robot bridge: chunks are the plain forward pass, engines pass the gates, figures are timed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgewam.compile.compile import compile_bundle
from edgewam.compile.frames import Frame
from edgewam.compile.plan import plan_policy
from edgewam.compile.validate import validate
from edgewam.core.errors import ContractError, EdgewamError
from edgewam.flow.solver import euler_table
from edgewam.models import fast_wam
from edgewam.robot_bridge.evaluation.lockstep import LockstepSettings, run_episode
from edgewam.robot_bridge.policy import Policy, SplitPolicy, open_policy
from edgewam.robot_bridge.robot import StepResult
from edgewam.robot_bridge.robots import aloha_sim
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.measure import profile_bundle
from edgewam.runtime.pipeline import Pipeline
from edgewam.runtime.policies.fast_wam import FastWamPolicy, rehearse
from edgewam.runtime.policies.host_section import synthetic_observation
from tests.runtime.tiny_fast_wam import PROMPT, tiny_fast_parts

ATOL = 2e-5  # float32 sums in another order, actions of order one


@pytest.fixture(scope="module")
def parts():
    return tiny_fast_parts()


def plan_of(parts, backend, **host):
    model, encoder, state, action, text = parts
    return plan_policy(
        "fast_wam", model, backend, num_action_steps=2, prompts={PROMPT: text}, threads=1,
        stage_arguments={"image_encoder": encoder, "state_normalizer": state, "action_normalizer": action},
        host={"action_std": action.std.tolist(), **host},
    )  # fmt: skip


def in_memory(parts, **host):
    plan = plan_of(parts, "eager", **host)
    engines = {name: TorchEngine(stage) for name, stage in plan.stages.items()}
    pipeline = Pipeline(plan.programs, plan.stages, engines)
    return Bundle("fast_wam", "eager", plan.policy, plan.host, plan.stages, engines, pipeline, plan.prompts)


@pytest.fixture
def policy(parts):
    policy = FastWamPolicy(in_memory(parts))
    policy.reset(PROMPT, seed=3)
    return policy


@pytest.fixture(scope="module")
def written(parts, tmp_path_factory):
    """Directory of an exported bundle."""
    return compile_bundle(plan_of(parts, "onnxruntime"), tmp_path_factory.mktemp("bundles") / "bundle")


@torch.no_grad()
def test_chunks_of_an_episode_are_the_plain_forward_pass_of_their_own_observation(parts, policy):
    model, encoder, state, action, text = parts
    for tick in (0, 24, 25):
        observation = synthetic_observation(policy.host, tick)
        latent = encoder(torch.from_numpy(policy.compose(observation)))
        proprio = torch.from_numpy(state.forward(observation.state))[None]
        conditioning = fast_wam.prefill(model, latent, torch.from_numpy(text)[None], proprio)
        noise = np.random.default_rng((3, tick)).standard_normal((1, *policy.noise_shape), np.float32)
        states = fast_wam.sample_horizon(model, conditioning, torch.from_numpy(noise), euler_table(2, model.config.shift))
        chunk = policy.infer(observation)
        np.testing.assert_allclose(chunk.actions, action.backward(states[-1][0].numpy()), rtol=0, atol=ATOL)
        assert (chunk.start_tick, chunk.observation_tick) == (tick, tick) and chunk.actions.dtype == np.float32


def test_a_chunk_follows_from_seed_and_observation_whatever_came_before(policy):
    first, later = (synthetic_observation(policy.host, tick) for tick in (0, 24))
    policy.infer(first)
    expected = policy.infer(later).actions
    policy.reset(PROMPT, seed=3)
    policy.plan(first)  # nothing that a plan could leave behind
    assert np.array_equal(policy.infer(later).actions, expected)
    policy.reset(PROMPT, seed=4)
    assert not np.array_equal(policy.infer(later).actions, expected)


def test_a_sample_is_the_chunk_of_its_noise_in_standard_deviations(parts, policy):
    observation = synthetic_observation(policy.host, 0)
    noise = np.random.default_rng((3, 0)).standard_normal(policy.noise_shape, np.float32)
    expected = policy.infer(observation).actions / parts[3].std
    np.testing.assert_allclose(policy.sample(observation, noise), expected, rtol=1e-6, atol=0)
    unknown = FastWamPolicy(in_memory(parts, action_std=[]))
    unknown.reset(PROMPT, 0)
    with pytest.raises(EdgewamError, match="Compile it again"):
        unknown.sample(observation, noise)


def test_it_is_a_policy_without_a_context_of_its_own(policy):
    assert isinstance(policy, Policy) and not isinstance(policy, SplitPolicy)


def test_other_cameras_are_composed_as_the_bundle_says(parts):
    policy = FastWamPolicy(in_memory(parts, composition="side_by_side"))
    policy.reset(PROMPT, 0)
    observation = synthetic_observation(policy.host, 0)
    assert set(observation.images) == {"front", "wrist"}
    canvas = policy.compose(observation)
    assert np.array_equal(canvas, np.concatenate([observation.images["front"], observation.images["wrist"]], 1))
    assert policy.infer(observation).actions.shape == (policy.host.horizon, policy.host.action_dim)


def test_wrong_use_says_what_to_do(parts):
    bundle = in_memory(parts)
    policy = FastWamPolicy(bundle)
    with pytest.raises(EdgewamError, match="Call reset"):
        policy.infer(synthetic_observation(policy.host, 0))
    with pytest.raises(EdgewamError, match="no embedding of the prompt"):
        policy.reset("dance", 0)
    policy.reset(PROMPT, 0)
    with pytest.raises(EdgewamError, match="before the episode"):
        policy.act_canvas(policy.compose(synthetic_observation(policy.host, 0)), np.zeros(14, np.float32), -1)
    with pytest.raises(ContractError, match=r"does not fit 'fast_wam'.*horizon"):
        FastWamPolicy(Bundle(**{**vars(bundle), "host": {k: v for k, v in bundle.host.items() if k != "horizon"}}))
    with pytest.raises(EdgewamError, match="at least one prompt"):
        rehearse(Bundle(**{**vars(bundle), "prompts": {}}))


def test_an_exported_bundle_passes_the_gates_against_eager_and_is_timed(parts, written):
    engine, eager = Bundle.open(written, threads=1), in_memory(parts)
    reference = replace(engine, backend="eager", engines=eager.engines, pipeline=eager.pipeline, stages=eager.stages)
    host = eager.open_policy().host
    report = validate(engine, reference, frames=[Frame(synthetic_observation(host, tick), PROMPT) for tick in range(2)])
    report.require()
    assert set(report.to_json()["stages"]["stages"]) == set(eager.stages)
    profiles = profile_bundle(engine, n=2, warmup=1)
    assert set(profiles) == {"prompt", "act", "L_chunk", "L_compose"}


class Arms:
    """The joints of ALOHA without a simulator behind them, and synthetic cameras."""

    spec = aloha_sim.SPEC

    def __init__(self, host):
        self._host = host

    def reset(self, seed):
        """Back to tick 0."""
        self._tick = 0

    def observe(self):
        """What the cameras of this tick show."""
        return synthetic_observation(self._host, self._tick)

    def step(self, target):
        """One tick, without success."""
        self._tick += 1
        return StepResult(0, False, False)


def test_the_bridge_opens_it_by_name_and_plays_with_it(written):
    arguments = {"bundle": str(written), "threads": 1}
    policy = open_policy("edgewam.runtime.factory.open_policy", arguments)
    result = run_episode(Arms(policy.host), policy, 0, PROMPT, LockstepSettings(max_ticks=50, execute_ticks=24))
    assert (result.ticks, result.chunks, result.held_ticks) == (50, 3, 0)
    with pytest.raises(EdgewamError, match="no context to refresh"):
        open_policy("edgewam.runtime.factory.open_policy", {**arguments, "refresh_ticks": 32})
    with pytest.raises(EdgewamError, match="cannot run without 'memory'"):
        open_policy("edgewam.runtime.factory.open_policy", arguments, ablate=("memory",))

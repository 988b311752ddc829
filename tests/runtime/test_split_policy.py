"""AHA-WAM split into a planner and an executor: the same actions bitwise, and none of the faults of the released server.

Those (facts: its single-device asynchronous mode) were: start noise overwritten by the answer, always the first chunk's index,
frame ids that count refreshes instead of time and end at a table, an action step that writes the planner's state.
"""

from dataclasses import replace

import numpy as np
import pytest

from edgewam.core.errors import ContractError, EdgewamError
from edgewam.core.rope import axis_rope, frame_rope
from edgewam.models import aha_wam
from edgewam.robot_bridge.policy import SplitPolicy, longest_prefix
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.pipeline import Pipeline
from edgewam.runtime.policies.aha_wam import AhaWamPolicy
from edgewam.runtime.policies.aha_wam_context import Context, from_bytes, to_bytes
from edgewam.runtime.policies.host_section import synthetic_observation
from tests.robot_bridge.split import Bench
from tests.runtime.fake_device import FakeDevice
from tests.runtime.test_aha_wam_policy import make_bundle
from tests.runtime.tiny_aha_wam import PROMPT, tiny_parts


@pytest.fixture(scope="module")
def parts():
    return tiny_parts()


def opened(parts, **host):
    policy = AhaWamPolicy(make_bundle(parts, **host))
    policy.reset(PROMPT, seed=3)
    return policy


def look(policy, tick):
    return synthetic_observation(policy.host, tick)


def inputs_of(policy, program, monkeypatch):
    """The inputs of every later run of a program."""
    seen, run = [], policy._pipeline.run

    def spy(name, inputs):
        if name == program:
            seen.append({key: array.copy() for key, array in inputs.items()})
        return run(name, inputs)

    monkeypatch.setattr(policy._pipeline, "run", spy)
    return seen


def test_it_is_a_split_policy_that_says_what_it_was_trained_for(parts):
    policy = opened(parts)
    assert isinstance(policy, SplitPolicy) and longest_prefix(policy) == 0
    assert (policy.chunk_size, policy.horizon, policy.refresh_ticks, policy.context_tick) == (16, 48, 32, None)
    assert longest_prefix(opened(parts, prefix_trained=True)) == 8
    assert longest_prefix(opened(parts, prefix_trained=True, max_prefix=5)) == 5


def test_planner_and_executor_apart_act_as_one_policy_bitwise(parts):
    # contexts of ticks 0, 32, 64, 96 (both memory slots filled twice), each used late: from 5 ticks after its frame on
    whole, planner, executor = (opened(parts) for _ in range(3))
    bytes_of = {}
    for tick in (0, 32, 64, 96):
        planner.plan(look(planner, tick))
        bytes_of[tick] = planner.export_context()
        whole.plan(look(whole, tick))
        executor.import_context(bytes_of[tick])
        for later in (5, 16, 23, 37):
            observation = look(whole, tick + later)
            np.testing.assert_array_equal(executor.act(observation).actions, whole.act(observation).actions)
    assert executor._refreshes.count == 0 and not executor._pipeline.state("memory").any(), "memory stays with who plans"
    assert len(set(bytes_of.values())) == 4


def test_a_context_serves_from_its_own_tick_on_and_not_before(parts):
    planner, executor = opened(parts), opened(parts)
    planner.plan(look(planner, 40))
    executor.import_context(planner.export_context())
    assert executor.context_tick == 40
    executor.act(look(executor, 40))
    with pytest.raises(EdgewamError, match="-1 ticks after"):
        executor.act(look(executor, 39))
    with pytest.raises(EdgewamError, match="horizon is 48"):
        executor.act(look(executor, 88))


def test_late_contexts_of_weights_without_offsets_keep_their_grid(parts):
    planner, executor = opened(parts, offset_trained=False), opened(parts, offset_trained=False)
    planner.plan(look(planner, 8))
    executor.import_context(planner.export_context())
    executor.act(look(executor, 24))
    with pytest.raises(EdgewamError, match="without offsets"):
        executor.act(look(executor, 32))


def test_start_noise_is_never_overwritten(parts, monkeypatch):
    policy = opened(parts)
    seen = inputs_of(policy, "act", monkeypatch)
    policy.plan(look(policy, 0))
    noise = policy._refreshes.context.noise.copy()
    first = policy.act(look(policy, 0)).actions
    policy.act(look(policy, 16))
    np.testing.assert_array_equal(policy.act(look(policy, 0)).actions, first)
    for call, rows in zip(seen, (slice(0, 16), slice(16, 32), slice(0, 16)), strict=True):
        np.testing.assert_array_equal(call["noise"], noise[rows])
    with pytest.raises(ValueError, match="read-only"):
        policy._refreshes.context.noise[0] = 0


def test_the_chunk_index_advances_with_time_however_often_somebody_asks(parts, monkeypatch):
    planner, policy = opened(parts), opened(parts)
    planner.plan(look(planner, 0))
    policy.import_context(planner.export_context())
    seen = inputs_of(policy, "act", monkeypatch)
    for tick in (0, 8, 15, 16, 24, 40, 47):
        policy.act(look(policy, tick))
    for call, index in zip(seen, (0, 0, 0, 1, 1, 2, 2), strict=True):
        cos, _ = axis_rope(16 * index + np.arange(16), policy.host.head_dim, policy.host.rope_theta)
        np.testing.assert_array_equal(call["chunk_cos"], cos)


def test_frame_ids_follow_the_ticks_and_have_no_limit(parts, monkeypatch):
    policy = opened(parts)
    seen = inputs_of(policy, "plan", monkeypatch)
    ticks = (0, 9, 41, 250, 10_000_000)  # refreshes at no regular rate
    for tick in ticks:
        policy.plan(replace(look(policy, 0), tick=tick))
    host = policy.host
    for call, tick in zip(seen, ticks, strict=True):
        cos, _ = frame_rope(tick // host.rope_stride, host.grid, host.rope_dims, host.rope_theta)
        np.testing.assert_array_equal(call["frame_cos"], cos)


def test_a_chunk_writes_nothing_that_the_planner_left(parts):
    policy = opened(parts)
    policy.plan(look(policy, 0))
    before = {state.spec.name: policy._pipeline.state(state.spec.name) for state in policy._pipeline.programs.states}
    exported = policy.export_context()
    for tick in (0, 16, 21):
        policy.act(look(policy, tick))
    for name, value in before.items():
        np.testing.assert_array_equal(policy._pipeline.state(name), value)
    assert policy.export_context() == exported


def test_a_prompt_is_a_name_and_never_a_sentence_to_embed(parts):
    policy = opened(parts)
    for prompt in ("pass the red  cube", f"A robot does the following: {PROMPT}"):
        with pytest.raises(EdgewamError, match="no embedding of the prompt"):
            policy.reset(prompt, seed=0)


def test_contexts_that_are_cut_off_or_foreign_are_refused_and_change_nothing(parts):
    planner, executor = opened(parts), opened(parts)
    planner.plan(look(planner, 0))
    data = planner.export_context()
    executor.import_context(data)
    wanted = executor.act(look(executor, 16)).actions
    for broken in (b"", data[:7], data[:-1], data + b"x", b"XXXX" + data[4:], data[:8] + b"[" + data[9:]):
        with pytest.raises(ContractError, match="no planner context"):
            executor.import_context(broken)
    context, states = from_bytes(data, "")
    for other in (
        to_bytes(context, states, "cafe" * 16),
        to_bytes(context, {}, ""),
        to_bytes(Context(0, 0, context.noise[:16]), states, ""),
        to_bytes(context, {name: array[:1] for name, array in states.items()}, ""),
    ):
        with pytest.raises(ContractError):
            executor.import_context(other)
    np.testing.assert_array_equal(executor.act(look(executor, 16)).actions, wanted)
    with pytest.raises(EdgewamError, match="reset"):
        AhaWamPolicy(make_bundle(parts)).import_context(data)
    with pytest.raises(EdgewamError, match="no plan yet"):
        opened(parts).export_context()


def test_on_the_host_a_refresh_is_done_when_start_returns(parts):
    policy, blocking = opened(parts), opened(parts)
    policy.start_plan(look(policy, 0))
    assert policy.poll_plan() and policy.context_tick == 0
    blocking.plan(look(blocking, 0))
    assert policy.export_context() == blocking.export_context()


def test_engine_and_planner_over_records_publish_what_one_policy_answers_bitwise(parts):
    one = opened(parts)
    shapes = {name: image.shape for name, image in look(one, 0).images.items()}
    bench = Bench(14, shapes, planner="process", prompt=PROMPT, seed=3)
    engine, planner = (make(AhaWamPolicy(make_bundle(parts))) for make in (bench.engine, bench.planner))
    bench.start()
    ticks = []
    for tick in range(0, 112, 4):
        observation = look(one, tick)
        bench.frame(tick, state=observation.state, **observation.images)
        engine.step()
        planner.step()
        engine.step()
        if (chunk := bench.chunk()) is not None:
            if chunk["context_tick"] != one.context_tick:
                one.plan(look(one, int(chunk["context_tick"])))
            np.testing.assert_array_equal(chunk["actions"][: chunk["rows"]], one.act(observation).actions)
            ticks.append((tick, one.context_tick))
    bench.close()
    assert [tick for tick, _ in ticks] == list(range(0, 112, 8))
    assert [context for _, context in ticks] == [0] * 5 + [32] * 4 + [64] * 4 + [96]


class _IssuingEngine:
    """An engine whose work waits on the stream of a fake device, so that a refresh is under way until somebody waits."""

    def __init__(self, engine, device):
        self.stage, self._engine, self._device = engine.stage, engine, device

    def bind(self, inputs, outputs):
        call = self._engine.bind(inputs, outputs)
        return lambda: self._device.issue(call)


def in_background(parts):
    """A policy on a device where plan runs beside act."""
    bundle, device = make_bundle(parts), FakeDevice()
    engines = {name: _IssuingEngine(engine, device) for name, engine in bundle.engines.items()}
    pipeline = Pipeline(aha_wam.programs(parts[0], 2), bundle.stages, engines, device, overlap=True)
    policy = AhaWamPolicy(Bundle(**{**vars(bundle), "engines": engines, "pipeline": pipeline}))
    policy.reset(PROMPT, seed=3)
    return policy, device


def test_in_the_background_chunks_go_on_with_the_old_context_until_the_new_one_is_done(parts):
    policy, device = in_background(parts)
    old, new = opened(parts), opened(parts)
    for each in (policy, old, new):
        each.plan(look(each, 0))
    policy.start_plan(look(policy, 16))
    new.plan(look(new, 16))
    observation = look(policy, 32)
    assert not policy.poll_plan() and policy.context_tick == 0
    np.testing.assert_array_equal(policy.act(observation).actions, old.act(observation).actions)
    with pytest.raises(EdgewamError, match="under way"):
        policy.start_plan(observation)
    device.synchronize()  # time passes on the device
    assert policy.poll_plan() and policy.context_tick == 16
    np.testing.assert_array_equal(policy.act(observation).actions, new.act(observation).actions)
    assert policy.export_context() == new.export_context()


def test_a_reset_and_a_blocking_refresh_take_in_what_is_under_way(parts):
    policy, _ = in_background(parts)
    one = opened(parts)
    policy.start_plan(look(policy, 0))
    policy.plan(look(policy, 16))
    for tick in (0, 16):
        one.plan(look(one, tick))
    assert policy.export_context() == one.export_context()
    policy.start_plan(look(policy, 32))
    policy.reset(PROMPT, seed=3)
    one.reset(PROMPT, seed=3)
    assert policy.context_tick is None
    np.testing.assert_array_equal(policy.infer(look(policy, 0)).actions, one.infer(look(one, 0)).actions)

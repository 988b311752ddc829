"""The handler behind every door: one controller, a stop that latches, episodes and their ticks; all without a network."""

import dataclasses

import numpy as np
import pytest

from edgewam.robot_bridge.clock import NS
from edgewam.robot_bridge.serving.handler import DoorError, Look
from edgewam.robot_bridge.serving.session import SessionSettings
from tests.robot_bridge.serving.fake_engine import FakeEngine, images, session, state


class Clock:
    """Monotonic time that moves when told."""

    def __init__(self):
        self.s = 100.0

    def __call__(self):
        return int(self.s * NS)


def look(value=0, **options):
    return Look(images(value), state(), **options)


def refused(code, call, *arguments):
    with pytest.raises(DoorError) as caught:
        call(*arguments)
    assert caught.value.code == code
    return str(caught.value)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def served(engine, clock):
    return session(engine, clock_ns=clock)


def test_the_answer_belongs_to_the_look(served):
    answer = served.infer("a", look(3))
    np.testing.assert_array_equal(answer.actions, np.tile([3.25, 0.5], (16, 1)))


def test_the_second_client_is_refused_until_the_first_has_left(served):
    served.infer("a", look())
    for call in (served.infer, served.act, served.plan):
        assert "Another client" in refused("not_controller", call, "b", look())
    refused("not_controller", served.reset, "b", None)
    assert served.metadata["state_dim"] == 2
    served.release("b")  # held nothing
    assert served.controller == "a"
    served.release("a")
    served.infer("b", look())
    assert served.controller == "b"


def test_a_silent_controller_can_be_replaced_and_does_not_get_its_episode_back(served, engine, clock):
    served.infer("a", look())
    clock.s += 9.9
    refused("not_controller", served.infer, "b", look())
    clock.s += 0.2
    served.infer("b", look())
    refused("not_controller", served.infer, "a", look())
    assert len(engine.episodes) == 2


def test_a_bad_look_does_not_make_a_controller(served):
    refused("bad_request", served.infer, "a", Look(images(), state(np.nan, 0.0)))
    assert served.controller is None


def test_any_client_can_stop_and_no_client_can_undo_it(served):
    served.infer("a", look())
    served.stop("b")
    for call in (served.infer, served.act, served.plan):
        refused("stopped", call, "a", look())
    refused("stopped", served.reset, "a", None)
    served.release("a")
    refused("stopped", served.infer, "c", look())
    served.clear_stop()
    served.infer("c", look())


def test_actions_computed_before_a_stop_do_not_leave_after_it(engine):
    served = session(engine)
    answer = engine._answer
    engine._answer = lambda observation: (served.stop("b"), answer(observation))[1]
    refused("stopped", served.infer, "a", look())


def test_actions_that_are_not_finite_never_leave(served, engine):
    engine.value = np.nan
    refused("internal", served.infer, "a", look())


def test_ticks_are_elapsed_time_since_the_first_look(served, engine, clock):
    served.reset("a", None)
    clock.s += 3.0  # the arms went to their start pose
    served.infer("a", look())
    clock.s += 0.3205
    served.infer("a", look())
    assert engine.calls == [("infer", 0), ("infer", 16)]


def test_weights_without_offsets_stay_on_their_grid(clock):
    engine = FakeEngine(grid_ticks=16)
    served = session(engine, clock_ns=clock)
    for _ in range(5):
        served.infer("a", look())
        clock.s += 0.35  # 17.5 ticks
    assert [tick for _, tick in engine.calls] == [0, 16, 32, 48, 64]


def test_the_clients_own_ticks_win(served, engine):
    for tick in (0, 16, 48):
        served.infer("a", look(tick=tick))
    assert [tick for _, tick in engine.calls] == [0, 16, 48]
    assert len(engine.episodes) == 1


@pytest.mark.parametrize("second", [{"tick": 3}, {"prompt": "wave", "tick": 20}])
def test_a_tick_that_goes_back_or_another_prompt_begins_an_episode(served, engine, second):
    served.infer("a", look(tick=10))
    served.infer("a", look(**second))
    assert len(engine.episodes) == 2
    assert engine.episodes[1] == (second.get("prompt", "reach"), 1)


def test_the_same_prompt_goes_on(served, engine):
    served.infer("a", look(prompt="reach"))
    served.infer("a", look(prompt="reach"))
    assert len(engine.episodes) == 1


def test_an_unknown_prompt_is_refused_and_the_old_one_stays_in_force(served, engine):
    served.infer("a", look())
    assert "wave" in refused("unknown_prompt", served.infer, "a", look(prompt="juggle"))
    served.infer("a", look())
    assert [prompt for prompt, _ in engine.episodes] == ["reach", "reach"]


def test_a_restarted_engine_begins_an_episode(served, engine):
    served.infer("a", look())
    engine.refuse = DoorError("engine_restarting", "soon")
    refused("engine_restarting", served.infer, "a", look())
    engine.generation += 1
    served.infer("a", look())
    assert len(engine.episodes) == 2


def test_images_and_state_may_be_left_out_once_they_are_known(served, engine):
    assert "cam_left_wrist uint8[4, 6, 3]" in refused("bad_request", served.infer, "a", Look(state=state()))
    refused("bad_request", served.infer, "a", Look(images()))
    served.infer("a", look(7))
    answer = served.infer("a", Look(state=state(0.5, 0.0)))
    assert answer.actions[0].tolist() == [7.5, 0.0]
    served.reset("a", None)
    refused("bad_request", served.infer, "a", Look(state=state()))


def test_a_plan_needs_no_state_and_an_act_needs_a_plan(served):
    refused("no_plan", served.act, "a", look())
    assert served.plan("a", Look(images()))["queued"]
    assert served.act("a", look()).actions.shape == (16, 2)


def test_asking_too_often_is_refused_and_a_stop_never_is(engine, clock):
    served = session(engine, SessionSettings(requests_per_s=10, burst=5, total_requests_per_s=100), clock_ns=clock)
    for _ in range(5):
        served.infer("a", look())
    refused("rate_limited", served.infer, "a", look())
    clock.s += 0.11
    served.infer("a", look())
    refused("rate_limited", served.infer, "a", look())
    for _ in range(50):
        served.stop("a")
    assert served.is_stopped


def test_all_clients_together_are_limited_too(clock):
    served = session(settings=SessionSettings(requests_per_s=10, burst=5, total_requests_per_s=20), clock_ns=clock)
    codes = []
    for client in "abcdefgh":
        for _ in range(5):
            with pytest.raises(DoorError) as caught:
                served.infer(client, Look(images(), state(np.nan, 0.0)))
            codes.append(caught.value.code)
    assert codes.count("bad_request") == 10  # the total burst: 5 * 20 / 10


def test_others_cannot_crowd_out_the_controller(clock):
    served = session(settings=SessionSettings(requests_per_s=10, burst=5, total_requests_per_s=20), clock_ns=clock)
    served.infer("a", look())
    codes = set()
    for client in "bcdefgh":
        for _ in range(5):
            with pytest.raises(DoorError) as caught:
                served.infer(client, look())
            codes.add(caught.value.code)
    assert codes == {"not_controller", "rate_limited"}
    for _ in range(4):  # what is left of its own burst
        served.infer("a", look())
    refused("rate_limited", served.infer, "a", look())


def test_a_seed_reaches_the_engine_as_a_number(served, engine):
    served.reset("a", None, np.array(7, np.int64))
    assert [(type(seed), seed) for _, seed in engine.episodes] == [(int, 7)]


@pytest.mark.parametrize("shape", [(16, 3), (15, 2), (0, 2), (16,)])
def test_actions_of_another_shape_never_leave(served, engine, shape):
    answer = engine._answer
    engine._answer = lambda observation: dataclasses.replace(answer(observation), actions=np.zeros(shape, np.float32))
    refused("internal", served.infer, "a", look())


def test_an_engine_that_was_restarted_meanwhile_answers_for_no_episode(served, engine):
    served.infer("a", look())
    answer = engine._answer

    def restarted(observation):
        engine.generation += 1
        engine._answer = answer
        return answer(observation)

    engine._answer = restarted
    refused("engine_restarting", served.infer, "a", look())
    served.infer("a", look())
    assert len(engine.episodes) == 2

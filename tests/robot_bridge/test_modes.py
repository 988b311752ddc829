"""The mode machine of the bridge: what leads where, what is latched."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewam.robot_bridge.modes import Cause, Mode, ModeMachine, Situation

WAITING = Situation(True, None)
GOOD = Situation(True, True)
FAR = Situation(True, False)
BLIND = Situation(False, True)
NEW = Situation(True, None, is_new_episode=True)


def machine(*situations, pause=3, hold=5):
    made = ModeMachine(pause, hold)
    for situation in situations:
        made.step(situation)
    return made


def test_the_way_up_is_init_ready_run():
    walked = ModeMachine(3, 5)
    assert walked.mode is Mode.INIT
    assert [walked.step(s) for s in (Situation(False, None), WAITING, WAITING, GOOD)] == [
        Mode.INIT,
        Mode.READY,
        Mode.READY,
        Mode.RUN,
    ]


@pytest.mark.parametrize(("situation", "cause"), [(WAITING, Cause.NO_CHUNK), (BLIND, Cause.STALE_STATE)])
def test_a_run_without_chunk_or_state_holds_and_recovers_by_itself(situation, cause):
    held = machine(WAITING, GOOD, situation)
    assert (held.mode, held.cause) == (Mode.HOLD, cause)
    assert held.step(GOOD) is Mode.RUN and held.cause is Cause.NONE


def test_a_far_row_is_followed_while_running_but_approached_from_a_hold():
    assert machine(WAITING, GOOD, FAR).mode is Mode.RUN
    held = machine(WAITING, GOOD, WAITING, FAR)
    assert (held.mode, held.cause) == (Mode.HOLD, Cause.APPROACH)


def test_a_first_chunk_out_of_reach_is_approached():
    held = machine(WAITING, FAR)
    assert (held.mode, held.cause) == (Mode.HOLD, Cause.APPROACH)


def test_a_pause_that_lasts_too_long_is_a_hold():
    assert machine(*[WAITING] * 3).mode is Mode.READY
    assert machine(*[WAITING] * 4).mode is Mode.HOLD


def test_a_new_episode_is_a_new_pause():
    waited = machine(WAITING, GOOD, NEW, WAITING, WAITING)
    assert waited.mode is Mode.READY
    assert waited.step(WAITING) is Mode.HOLD
    assert machine(WAITING, GOOD, WAITING, NEW).mode is Mode.READY
    assert machine(WAITING, WAITING, NEW, WAITING, WAITING).mode is Mode.READY, "each episode has its own pause"


def test_a_hold_that_lasts_too_long_stops_for_good():
    stopped = machine(WAITING, GOOD, *[WAITING] * 5)
    assert stopped.mode is Mode.HOLD
    assert stopped.step(WAITING) is Mode.STOP
    assert [stopped.step(s) for s in (GOOD, NEW, FAR)] == [Mode.STOP] * 3


def test_stop_and_estop_are_latched_and_estop_wins():
    stopped = machine(WAITING, GOOD, Situation(True, True, is_stop_asked=True))
    assert stopped.mode is Mode.STOP and stopped.step(GOOD) is Mode.STOP
    assert stopped.step(Situation(True, True, is_estop_asked=True)) is Mode.ESTOP
    assert [stopped.step(s) for s in (GOOD, NEW, Situation(True, True, is_stop_asked=True))] == [Mode.ESTOP] * 3
    tripped = machine(WAITING, GOOD)
    tripped.trip()
    assert tripped.step(GOOD) is Mode.ESTOP


situations = st.builds(
    Situation, st.booleans(), st.sampled_from([None, True, False]), st.booleans(), st.booleans(), st.booleans()
)


@given(st.lists(situations, max_size=40))
def test_latched_modes_are_never_left_and_running_needs_state_and_row(walk):
    walked = ModeMachine(3, 5)
    modes = []
    for situation in walk:
        mode = walked.step(situation)
        modes.append(mode)
        if mode is Mode.RUN:
            assert situation.is_state_fresh and situation.is_row_in_reach is not None
    for before, after in itertools.pairwise(modes):
        assert before < Mode.STOP or after >= before

"""The mode machine of the bridge: what leads where, what is latched, and who may unlatch it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewam.robot_bridge.control.modes import Cause, Mode, ModeMachine, Patience, Situation

NEW = Situation(True, None, is_new_episode=True)
WAITING = Situation(True, None)
GOOD = Situation(True, True, chunk=True)
FOLLOWED = Situation(True, True)  # a row, but no new chunk in this tick
BAD = Situation(True, True, chunk=False)
FAR = Situation(True, False, chunk=True)
BLIND = Situation(False, True)
DISARMED = replace(FOLLOWED, is_armed=False)
STOP = replace(FOLLOWED, stop=Cause.REQUEST)
RESET = Situation(True, None, is_reset=True)
PATIENCE = Patience(max_pause_ticks=3, max_hold_ticks=5, resume_chunks=2, max_rejects=4)


def machine(*situations):
    made = ModeMachine(PATIENCE)
    for situation in situations:
        made.step(situation)
    return made


def walked(made, *situations):
    return [(made.step(situation), made.cause) for situation in situations]


def test_the_way_up_is_init_ready_run():
    made = ModeMachine(PATIENCE)
    assert made.mode is Mode.INIT
    assert [made.step(s) for s in (Situation(False, None), NEW, WAITING, GOOD, FOLLOWED)] == [
        Mode.INIT,
        Mode.READY,
        Mode.READY,
        Mode.RUN,
        Mode.RUN,
    ]


def test_a_robot_that_stands_out_of_its_range_does_not_become_ready():
    assert walked(ModeMachine(PATIENCE), WAITING)[0] == (Mode.INIT, Cause.OUT_OF_RANGE)


CAUSES = [
    (WAITING, Cause.NO_CHUNK),
    (replace(WAITING, without_row=Cause.OLD_CONTEXT), Cause.OLD_CONTEXT),
    (BLIND, Cause.STALE_STATE),
    (replace(FOLLOWED, trouble=Cause.CAMERA), Cause.CAMERA),
    (replace(FOLLOWED, trouble=Cause.ENGINE_LOST), Cause.ENGINE_LOST),
    (DISARMED, Cause.DISARMED),
]


@pytest.mark.parametrize(("situation", "cause"), CAUSES)
def test_what_leads_the_arm_being_gone_is_held_and_recovers_after_good_chunks_in_a_row(situation, cause):
    held = machine(NEW, GOOD, situation)
    assert (held.mode, held.cause) == (Mode.HOLD, cause)
    assert walked(held, GOOD, BAD, GOOD, GOOD) == [
        *[(Mode.HOLD, Cause.RECOVERING)] * 3,
        (Mode.RUN, Cause.NONE),
    ]


def test_a_gap_between_chunks_does_not_make_the_ones_before_it_bad_but_trouble_does():
    held = machine(NEW, GOOD, WAITING, GOOD, WAITING)
    assert held.step(GOOD) is Mode.RUN
    held = machine(NEW, GOOD, WAITING, GOOD, BLIND)
    assert walked(held, GOOD) == [(Mode.HOLD, Cause.RECOVERING)]


def test_a_far_row_is_followed_while_running_but_approached_from_a_hold():
    assert machine(NEW, GOOD, FAR).mode is Mode.RUN
    held = machine(NEW, GOOD, WAITING, FAR)
    assert walked(held, FAR, replace(FAR, chunk=None), GOOD) == [
        (Mode.HOLD, Cause.APPROACH),
        (Mode.HOLD, Cause.APPROACH),
        (Mode.RUN, Cause.NONE),
    ]


def test_one_good_chunk_leaves_ready_and_is_approached_when_it_is_out_of_reach():
    held = machine(NEW, FAR)
    assert (held.mode, held.cause) == (Mode.HOLD, Cause.APPROACH)


def test_trouble_keeps_a_ready_arm_from_running():
    assert machine(NEW, replace(GOOD, trouble=Cause.CAMERA)).mode is Mode.READY
    assert walked(machine(NEW), *[replace(GOOD, trouble=Cause.CAMERA)] * 3)[-1] == (Mode.HOLD, Cause.CAMERA)


def test_an_unarmed_arm_stays_ready_for_as_long_as_it_likes_and_runs_when_armed():
    shadow = machine(NEW, *[replace(GOOD, is_armed=False)] * 50)
    assert (shadow.mode, shadow.cause) == (Mode.READY, Cause.NONE)
    assert shadow.step(FOLLOWED) is Mode.RUN


def test_a_disarmed_hold_does_not_time_out_but_a_dead_robot_does():
    held = machine(NEW, GOOD, *[DISARMED] * 50)
    assert (held.mode, held.cause) == (Mode.HOLD, Cause.DISARMED)
    assert walked(held, *[replace(BLIND, is_armed=False)] * 6)[-1] == (Mode.STOP, Cause.STALE_STATE)


def test_a_pause_that_lasts_too_long_is_a_hold():
    assert machine(NEW, *[WAITING] * 2).mode is Mode.READY
    assert machine(NEW, *[WAITING] * 3).mode is Mode.HOLD


def test_a_new_episode_is_a_new_pause():
    waited = machine(NEW, GOOD, NEW, WAITING, WAITING)
    assert waited.mode is Mode.READY
    assert waited.step(WAITING) is Mode.HOLD
    assert machine(NEW, GOOD, WAITING, NEW).mode is Mode.READY
    assert machine(NEW, WAITING, NEW, WAITING, WAITING).mode is Mode.READY, "each episode has its own pause"


def test_a_hold_that_lasts_too_long_stops_and_says_why():
    stopped = machine(NEW, GOOD, *[WAITING] * 5)
    assert stopped.mode is Mode.HOLD
    assert walked(stopped, WAITING, GOOD, NEW, FAR) == [(Mode.STOP, Cause.NO_CHUNK)] * 4


def test_too_many_bad_chunks_in_a_row_stop_even_an_arm_that_could_go_on():
    made = machine(NEW, GOOD, BAD, BAD, BAD, GOOD, BAD, BAD, BAD)
    assert made.mode is Mode.RUN
    assert walked(made, FOLLOWED, BAD) == [(Mode.RUN, Cause.NONE), (Mode.STOP, Cause.REJECTS)]
    assert machine(NEW, BAD, BAD, BAD, NEW, BAD).mode is Mode.READY, "counted per episode"


def test_only_a_reset_leaves_stop_and_the_rules_of_a_hold_apply_after_it():
    stopped = machine(NEW, GOOD, STOP)
    assert (stopped.mode, stopped.cause) == (Mode.STOP, Cause.REQUEST)
    assert walked(stopped, GOOD, NEW) == [(Mode.STOP, Cause.REQUEST)] * 2
    assert stopped.step(replace(RESET, stop=Cause.REQUEST)) is Mode.STOP, "who stops wins"
    assert [stopped.step(s) for s in (RESET, GOOD, GOOD)] == [Mode.READY, Mode.READY, Mode.RUN]


def test_estop_is_latched_for_ever_and_wins():
    made = machine(NEW, GOOD, STOP)
    assert walked(made, replace(STOP, is_estop_asked=True))[0] == (Mode.ESTOP, Cause.REQUEST)
    assert [made.step(s) for s in (GOOD, NEW, STOP, RESET)] == [Mode.ESTOP] * 4
    tripped = machine(NEW, GOOD)
    tripped.trip()
    assert walked(tripped, RESET) == [(Mode.ESTOP, Cause.VIOLATION)]


def test_a_refused_command_is_a_hold_and_refusing_for_ever_stops():
    made = machine(NEW, GOOD)
    made.refuse()
    assert (made.mode, made.cause) == (Mode.HOLD, Cause.WORKSPACE)
    assert walked(made, GOOD, GOOD) == [(Mode.HOLD, Cause.RECOVERING), (Mode.RUN, Cause.NONE)]
    for _ in range(20):
        made.refuse()
        made.step(GOOD)
        if made.step(GOOD) is Mode.STOP:
            break
    assert made.mode is Mode.STOP


situations = st.builds(
    Situation,
    st.booleans(),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, True, False]),
    st.booleans(),
    st.sampled_from([Cause.NONE, Cause.NONE, Cause.CAMERA, Cause.ENGINE_LOST]),
    st.sampled_from([Cause.NO_CHUNK, Cause.OLD_CONTEXT]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([Cause.NONE] * 5 + [Cause.REQUEST]),
    st.sampled_from([False] * 9 + [True]),
)


@given(st.lists(situations, max_size=60))
def test_what_every_walk_keeps(walk):
    made = ModeMachine(PATIENCE)
    before, held, good = Mode.INIT, 0, 0
    for now in walk:
        mode = made.step(now)
        good = 0 if now.chunk is False or now.is_new_episode or now.is_reset else good
        good += now.chunk is True
        if mode is Mode.RUN:
            assert now.is_state_good and now.is_armed and now.is_row_in_reach is not None and now.trouble is Cause.NONE
            assert before is Mode.RUN or good >= 1
            assert before is not Mode.HOLD or now.is_row_in_reach
        if before is Mode.ESTOP:
            assert mode is Mode.ESTOP
        if before is Mode.STOP and mode is not Mode.STOP:
            assert mode is Mode.ESTOP or (mode is Mode.READY and now.is_reset and now.stop is Cause.NONE)
        if now.stop is not Cause.NONE or now.is_estop_asked:
            assert mode >= Mode.STOP
        held = held + 1 if mode is Mode.HOLD and made.cause is not Cause.DISARMED else 0
        assert held <= PATIENCE.max_hold_ticks
        before = mode


@given(st.lists(st.sampled_from([GOOD, BAD, FOLLOWED, WAITING, BLIND, DISARMED]), min_size=1, max_size=40))
def test_a_hold_ends_only_after_enough_good_chunks_in_a_row(walk):
    made = machine(NEW, GOOD)
    in_row = 2
    for now in walk:
        before = made.mode
        mode = made.step(now)
        in_row = in_row + 1 if now.chunk else 0 if now.chunk is False or now in (BLIND, DISARMED) else in_row
        in_row = 0 if mode is Mode.HOLD and before is Mode.RUN else in_row
        if before is Mode.HOLD and mode is Mode.RUN:
            assert in_row >= PATIENCE.resume_chunks


def test_numbers_of_modes_and_causes_are_those_of_old_logs():
    assert [mode.name for mode in Mode] == ["INIT", "READY", "RUN", "HOLD", "STOP", "ESTOP"]
    names = [cause.name for cause in Cause]
    assert names[:4] == ["NONE", "NO_CHUNK", "STALE_STATE", "APPROACH"] and len(set(map(int, Cause))) == len(names)
    assert all(a < b for a, b in itertools.pairwise(Cause))

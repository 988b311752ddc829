"""One control tick at a time: what a chunk may do to the arm, and what it may not."""

from __future__ import annotations

import numpy as np
import pytest

from edgewam.robot_bridge.control.chunks import Reject
from edgewam.robot_bridge.control.modes import Cause, Mode
from tests.robot_bridge.bench import STEP, Bench, ramp


def test_nothing_is_sent_before_the_robot_has_reported():
    bench = Bench()
    decision = bench.step(bench.chunk(ramp(0, 0.01)), sensed=False)
    assert decision.command is None and decision.mode is Mode.INIT


def test_rows_are_taken_by_time_and_past_rows_are_skipped():
    bench = Bench().started()
    for _ in range(3):
        assert (bench.step().command == [0.0, 0.5]).all()
    late = bench.chunk(ramp(0, 0.01), start=1)
    decision = bench.step(late)  # tick 4
    assert decision.mode is Mode.RUN and decision.row == 3
    assert decision.command[0] == pytest.approx(0.03)
    assert [bench.step().row for _ in range(3)] == [4, 5, 6]


def test_a_newer_chunk_replaces_the_one_in_use_at_once():
    bench = Bench().started()
    bench.step(bench.chunk(ramp(0, 0.01)))
    newer = bench.chunk(ramp(0.02, 0.0))
    assert bench.step(newer).chunk["id"] == newer["id"]
    assert bench.step().command[0] == pytest.approx(0.02)


def test_beyond_the_horizon_the_arm_brakes_and_holds_its_last_command():
    bench = Bench().started()
    bench.step(bench.chunk(ramp(0.05, 0.05, rows=4)))
    for _ in range(3):
        assert bench.step().mode is Mode.RUN
    before = bench.commands[-1][0]
    held = [bench.step() for _ in range(8)]
    assert all(d.mode is Mode.HOLD and d.cause is Cause.NO_CHUNK and d.chunk is None for d in held)
    steps = np.diff([before] + [d.command[0] for d in held])
    np.testing.assert_allclose(steps, [0.04, 0.03, 0.02, 0.01, 0, 0, 0, 0], atol=1e-7)


@pytest.mark.parametrize(
    ("make", "reject"),
    [
        (lambda b: b.chunk(np.zeros((16, 3), np.float32)), Reject.SHAPE),
        (lambda b: b.chunk(np.zeros(16, np.float32)), Reject.SHAPE),
        (lambda b: b.chunk(np.zeros((0, 2), np.float32)), Reject.SHAPE),
        (lambda b: b.chunk(np.zeros((65, 2), np.float32)), Reject.SHAPE),
        (lambda b: b.chunk(np.zeros((16, 2), np.float64)), Reject.DTYPE),
        (lambda b: b.chunk(np.zeros((16, 2), np.float16)), Reject.DTYPE),
        (lambda b: b.chunk([[0, np.nan]] * 16), Reject.NOT_FINITE),
        (lambda b: b.chunk([[0, 0.5]] * 15 + [[np.inf, 0.5]]), Reject.NOT_FINITE),
        (lambda b: b.chunk(ramp(0, 0), number=1), Reject.REPLAYED),
        (lambda b: b.chunk(ramp(0, 0), number=-5), Reject.REPLAYED),
        (lambda b: b.chunk(ramp(0, 0), episode=1), Reject.OTHER_EPISODE),
        (lambda b: b.chunk(ramp(0, 0), start=b.tick + 1), Reject.FUTURE),
        (lambda b: b.chunk(ramp(0, 0), observed=b.tick + 1), Reject.FUTURE),
        (lambda b: b.chunk(ramp(0, 0), age_ns=-1), Reject.FUTURE),
        (lambda b: b.chunk(ramp(0, 0), start=b.tick - 16), Reject.EXPIRED),
        (lambda b: b.chunk(ramp(0, 0), age_ns=600_000_000), Reject.STALE),
        (lambda b: b.chunk(ramp(0.6, 0)), Reject.JUMP),
    ],
)
def test_a_bad_chunk_is_refused_with_its_cause_and_the_good_one_goes_on(make, reject):
    bench = Bench().started()
    bench.step(bench.chunk(ramp(0, 0.01)))
    bench.step()
    decision = bench.step(make(bench))
    assert decision.reject is reject
    assert decision.mode is Mode.RUN and decision.row == 2 and decision.command[0] == pytest.approx(0.02)


def test_the_last_row_of_a_chunk_is_still_good():
    bench = Bench().started()
    bench.tick = 40
    decision = bench.step(bench.chunk(ramp(0, 0.0), start=25))
    assert decision.mode is Mode.RUN and decision.row == 15


def test_a_hold_is_left_by_a_slow_approach_instead_of_a_jump():
    bench = Bench().started()
    bench.step(bench.chunk(ramp(0, 0.0, rows=1)))
    bench.step()
    assert bench.step(bench.chunk(ramp(0.9, 0.0, rows=64))).cause is Cause.RECOVERING
    decision = bench.step(bench.chunk(ramp(0.9, 0.0, rows=64)))
    assert decision.reject is Reject.NONE and (decision.mode, decision.cause) == (Mode.HOLD, Cause.APPROACH)
    while (decision := bench.step()).mode is Mode.HOLD:
        assert np.abs(np.diff(bench.commands[-2:], axis=0)).max() <= 0.25 * STEP[0] + 1e-9
    assert decision.mode is Mode.RUN
    assert 0.9 - bench.commands[-2][0] <= 0.45 + 1e-6, "running again as soon as the chunk is within reach"


def test_an_old_or_broken_robot_report_holds_the_arm():
    for wrong in ({"age_ns": 70_000_000}, {"age_ns": -1}, {"sensed": False}):
        bench = Bench().started()
        bench.step(bench.chunk(ramp(0, 0.01)))
        decision = bench.step(**wrong)
        assert (decision.mode, decision.cause) == (Mode.HOLD, Cause.STALE_STATE)
        assert bench.step().cause is Cause.RECOVERING and bench.recovered().mode is Mode.RUN
    bench = Bench().started()
    bench.step(bench.chunk(ramp(0, 0.01)))
    bench.pose = np.array([np.nan, 0.5], np.float32)
    assert bench.step().cause is Cause.STALE_STATE and np.isfinite(bench.commands[-1]).all()


def test_clamps_are_counted_by_joint():
    bench = Bench().started()
    decision = bench.step(bench.chunk([[0.3, 1.2]] * 16))
    assert (decision.range_clamps, decision.step_clamps) == (0b10, 0b11)
    np.testing.assert_allclose(decision.command, [0.06, 0.6])


def test_a_new_episode_starts_from_where_the_robot_is_and_forgets_old_chunks():
    bench = Bench().started()
    bench.step(bench.chunk(ramp(0, 0.05)))
    bench.episode, bench.pose = 1, np.array([0.8, 0.2], np.float32)
    old = bench.chunk(ramp(0, 0.01), episode=0)
    decision = bench.step(old)
    assert decision.mode is Mode.READY and decision.reject is Reject.OTHER_EPISODE
    np.testing.assert_allclose(decision.command, [0.8, 0.2], rtol=1e-6)
    assert bench.step().mode is Mode.READY, "the chunk in use belonged to the episode before"
    assert bench.step(bench.chunk(ramp(0.8, 0.0))).mode is Mode.RUN


def test_stop_brakes_and_estop_freezes():
    bench = Bench().started()
    bench.step(bench.chunk(ramp(0.05, 0.05)))
    stopped = bench.step(stop=Cause.REQUEST)
    assert (stopped.mode, stopped.cause) == (Mode.STOP, Cause.REQUEST)
    assert stopped.command[0] == pytest.approx(0.09)
    frozen = bench.step(estop=True)
    assert frozen.mode is Mode.ESTOP and (frozen.command == bench.commands[-2]).all()


def test_a_mistake_in_the_filter_is_caught_before_it_is_sent(monkeypatch):
    bench = Bench().started()
    monkeypatch.setattr("edgewam.robot_bridge.control.filter.step_bounds", lambda last, *_: (last * np.nan, last * np.nan))
    decision = bench.step(bench.chunk(ramp(0, 0.01)))
    assert decision.is_violation and (decision.mode, decision.cause) == (Mode.ESTOP, Cause.VIOLATION) and decision.chunk is None
    assert (decision.command == [0.0, 0.5]).all()
    assert (bench.step().command == [0.0, 0.5]).all(), "still broken, still not sent"


def test_arming_begins_where_the_arm_is_not_where_it_was():
    bench = Bench()
    bench.is_armed = False
    for _ in range(5):
        bench.step()
    bench.pose = np.array([0.8, 0.5], np.float32)  # moved by hand
    bench.step()
    bench.is_armed = True
    decision = bench.step()
    assert decision.mode is Mode.READY and decision.is_anchor
    np.testing.assert_allclose(decision.command, bench.pose)
    there = np.tile(bench.pose, (16, 1))
    assert [bench.step(bench.chunk(there)).mode for _ in range(3)][-1] is Mode.RUN


def test_only_what_was_decided_for_an_armed_and_anchored_arm_or_brakes_it_may_reach_a_real_robot():
    bench = Bench()
    bench.is_armed = False
    assert not any(bench.step().is_live for _ in range(4)), "never armed"
    bench.pose = np.array([0.8, 0.5], np.float32)  # by hand
    assert not bench.step().is_live, "still the old pose"
    bench.is_armed = True
    assert bench.step().is_live and bench.step().is_live
    for start in (0.7, 0.6):
        bench.step(bench.chunk(ramp(start, -0.01)))
    bench.step()
    bench.is_armed = False
    braking = [bench.step() for _ in range(8)]
    moves = np.diff([bench.commands[-9][0], *(decision.command[0] for decision in braking)]) != 0
    assert moves[:4].all() and not moves[4:].any()
    assert all(d.is_live for d in braking[:4]) and not any(d.is_live for d in braking[6:])
    bench.step(stop=Cause.REQUEST)
    assert not bench.step(reset=True).is_live, "a reset of a disarmed arm moves nothing"


def test_an_arm_that_has_only_sagged_goes_on_from_what_it_was_told():
    bench = Bench()
    bench.is_armed = False
    bench.started()
    bench.pose = (bench.pose - 0.9 * STEP).astype(np.float32)
    bench.step(bench.chunk(ramp(0, 0)))
    bench.is_armed = True
    decision = bench.step()
    assert decision.mode is Mode.RUN and not decision.is_anchor
    np.testing.assert_allclose(decision.command, [0.0, 0.5])


def test_an_arm_beyond_its_range_is_not_moved_by_arming():
    bench = Bench()
    bench.is_armed = False
    bench.started()
    bench.pose = np.array([3.0, 0.5], np.float32)
    bench.is_armed = True
    seen = [bench.step(bench.chunk(ramp(0, 0))) for _ in range(60)]
    assert all(decision.command is None for decision in seen)
    assert seen[-1].mode is Mode.HOLD and seen[-1].cause is Cause.OUT_OF_RANGE
    bench.pose = np.array([0.9, 0.5], np.float32)  # put back by hand
    np.testing.assert_allclose(bench.step().command, bench.pose)


@pytest.mark.parametrize(("outside", "is_anchored"), [(0.055, True), (0.1, False), (0.4, False)])
def test_an_arm_that_rests_outside_of_its_range_is_not_yanked_into_it(outside, is_anchored):
    bench = Bench(pose=(1.0 + outside, 0.5))
    command = bench.step().command
    assert (command is not None) == is_anchored, "the first command is in the range: the arm would go there as fast as it can"
    bench = Bench().started()
    bench.step(stop=Cause.REQUEST)
    bench.pose = np.array([1.0 + outside, 0.5], np.float32)
    assert (bench.step(reset=True).mode is Mode.READY) == is_anchored


def test_arming_again_while_the_arm_still_brakes_goes_on_at_once():
    bench = Bench().started()
    bench.step(bench.chunk(ramp(0.05, 0.05)))
    for _ in range(3):
        bench.step()
    bench.is_armed = False
    bench.step()
    bench.is_armed = True
    assert not bench.step().is_anchor
    steps = np.abs(np.diff([command[0] for command in bench.commands]))
    assert steps.max() <= STEP[0] + 1e-9

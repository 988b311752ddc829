"""The controller when people, cameras, engines or the robot do something: who may move the arm again, and from where."""

from __future__ import annotations

import numpy as np
import pytest

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.control.chunks import Reject
from edgewam.robot_bridge.control.controller import Controller
from edgewam.robot_bridge.control.modes import Cause, Mode
from edgewam.robot_bridge.control.workspace import load_workspace
from tests.robot_bridge.bench import ACCELERATION, CONFIG, STEP, Bench, ramp

STILL = np.tile(np.float32([0.0, 0.5]), (64, 1))


def where(decision):
    return decision.mode, decision.cause


def test_an_unarmed_arm_keeps_its_pose_while_chunks_are_checked_and_counted():
    bench = Bench(pose=(0.3, 0.2))
    bench.is_armed = False
    for _ in range(50):
        decision = bench.step(bench.chunk(ramp(0.35, 0.01)))
        assert decision.mode is Mode.READY and decision.chunk is None and decision.reject is Reject.NONE
        np.testing.assert_allclose(decision.command, [0.3, 0.2], rtol=1e-6)
    assert bench.step(bench.chunk([[np.nan, 0.5]] * 16)).reject is Reject.NOT_FINITE
    bench.step(bench.chunk(ramp(0.35, 0.01)))
    bench.is_armed = True
    assert bench.step().mode is Mode.RUN


def test_disarming_brakes_and_holds_and_arming_again_recovers_however_long_it_took():
    bench = Bench().running(ramp(0.0, 0.02, 40))
    bench.step()
    bench.is_armed = False
    steps = []
    for _ in range(300):
        decision = bench.step(bench.chunk(ramp(bench.commands[-1][0], 0.02)))
        assert where(decision) == (Mode.HOLD, Cause.DISARMED)
        steps.append(bench.commands[-1][0] - bench.commands[-2][0])
    np.testing.assert_allclose(steps[:5], [0.016, 0.012, 0.008, 0.004, 0.0], atol=1e-7)
    assert not np.any(steps[5:])
    bench.is_armed = True
    assert where(bench.step()) == (Mode.HOLD, Cause.RECOVERING)
    assert bench.recovered().mode is Mode.RUN


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ({"camera_age_ns": 201_000_000}, Cause.CAMERA),
        ({"engine_age_ns": 1_001_000_000}, Cause.ENGINE_LOST),
        ({"age_ns": 61_000_000}, Cause.STALE_STATE),
        ({"is_armed": False}, Cause.DISARMED),
    ],
)
def test_each_thing_that_leads_the_arm_has_its_cause_in_the_very_tick_it_is_missed(wrong, cause):
    bench = Bench().running(STILL)
    assert where(bench.step(**wrong)) == (Mode.HOLD, cause)
    assert bench.recovered().mode is Mode.RUN
    fine = {name: value - 2_000_000 if name.endswith("ns") else True for name, value in wrong.items()}
    assert Bench().running(STILL).step(**fine).mode is Mode.RUN


def test_the_most_serious_cause_is_told():
    bench = Bench().running(STILL)
    everything = {"camera_age_ns": 10**9, "engine_age_ns": 10**10, "is_armed": False}
    assert bench.step(sensed=False, **everything).cause is Cause.STALE_STATE
    assert bench.step(**everything).cause is Cause.DISARMED
    assert bench.step(**{**everything, "is_armed": True}).cause is Cause.ENGINE_LOST
    assert bench.step(camera_age_ns=10**9).cause is Cause.CAMERA


def test_a_hold_is_left_after_good_chunks_in_a_row_counted_from_its_beginning():
    bench = Bench(resume_chunks=3).running(STILL)
    bench.step(bench.chunk(STILL), sensed=False)
    for good in (STILL, STILL, [[np.nan, 0.5]] * 16, STILL, STILL):
        assert where(bench.step(bench.chunk(good))) == (Mode.HOLD, Cause.RECOVERING)
    assert bench.step(bench.chunk(STILL)).mode is Mode.RUN


def test_after_a_hold_the_arm_comes_near_at_limited_speed_even_when_it_may_accelerate_only_so_much():
    bench = Bench(max_acceleration=ACCELERATION).running(STILL[:1])
    assert bench.step().mode is Mode.HOLD
    far = np.tile(np.float32([0.9, 0.5]), (64, 1))
    bench.step(bench.chunk(far))
    decision = bench.step(bench.chunk(far))
    while decision.mode is Mode.HOLD:
        assert decision.cause is Cause.APPROACH and decision.chunk is None
        decision = bench.step()
    steps = np.diff(np.stack(bench.commands)[:, 0])
    assert decision.mode is Mode.RUN and np.abs(steps[:-1]).max() <= 0.25 * STEP[0] + 1e-9
    for _ in range(25):
        decision = bench.step()
    assert decision.command[0] == pytest.approx(0.9) and max(command[0] for command in bench.commands) <= 0.9 + 1e-6


def test_stop_is_left_by_a_local_reset_only_and_the_arm_begins_where_it_is_measured():
    bench = Bench().running(ramp(0.0, 0.02, 40))
    assert where(bench.step(stop=Cause.REQUEST)) == (Mode.STOP, Cause.REQUEST)
    for _ in range(20):
        assert bench.step(bench.chunk(STILL)).mode is Mode.STOP
    bench.pose = np.array([-0.4, 0.9], np.float32)  # pushed by hand
    assert where(bench.step(reset=True, stop=Cause.REQUEST)) == (Mode.STOP, Cause.REQUEST)
    decision = bench.step(reset=True)
    assert decision.mode is Mode.READY and decision.is_anchor and not decision.is_violation
    np.testing.assert_allclose(decision.command, [-0.4, 0.9], rtol=1e-6)
    near = ramp(-0.4, 0.0)
    near[:, 1] = 0.9
    assert bench.step(bench.chunk(near)).mode is Mode.READY, "chunks of before do not count, one is not enough"
    assert bench.step(bench.chunk(near)).mode is Mode.RUN


def test_a_reset_needs_to_know_where_the_arm_is_and_is_not_remembered():
    bench = Bench().running(STILL)
    bench.step(stop=Cause.REQUEST)
    assert bench.step(reset=True, age_ns=10**9).mode is Mode.STOP
    bench.pose = np.array([1.6, 0.5], np.float32)  # the nearest pose within the range would be a jump
    assert bench.step(reset=True).mode is Mode.STOP
    bench.pose = np.array([0.0, 0.5], np.float32)
    assert bench.step().mode is Mode.STOP
    assert bench.step(reset=True).mode is Mode.READY


def test_a_reset_while_nothing_is_latched_does_nothing():
    bench = Bench().running(STILL)
    assert bench.step(reset=True).mode is Mode.RUN


def test_estop_brakes_as_hard_as_the_limits_allow_and_no_reset_leaves_it():
    bench = Bench(max_acceleration=ACCELERATION).running(ramp(0.0, 0.03, 40))
    for _ in range(10):
        bench.step()
    decisions = [bench.step(estop=True)] + [bench.step(reset=True) for _ in range(4)]
    assert [where(d) for d in decisions] == [(Mode.ESTOP, Cause.REQUEST)] * 5
    steps = np.diff(np.stack(bench.commands)[-6:, 0])
    np.testing.assert_allclose(steps, [0.014, 0, 0, 0, 0], atol=1e-6)


def test_a_robot_outside_of_its_range_is_not_commanded_from_there():
    bench = Bench(pose=(1.6, 0.5))
    decision = bench.step(bench.chunk(STILL))
    assert where(decision) == (Mode.INIT, Cause.OUT_OF_RANGE) and decision.command is None
    bench.pose = np.array([1.02, 0.5], np.float32)
    decision = bench.step()
    assert decision.mode is Mode.READY and decision.command[0] == 1.0, "a little is a matter of calibration"


def test_an_episode_that_begins_out_of_range_is_held():
    bench = Bench().running(STILL)
    bench.episode, bench.pose = 1, np.array([5.0, 0.5], np.float32)
    assert where(bench.step()) == (Mode.HOLD, Cause.OUT_OF_RANGE)


def test_after_skipped_ticks_the_arm_starts_again_from_rest():
    bench = Bench(max_acceleration=ACCELERATION).running(ramp(0.0, 0.03, 64))
    for _ in range(9):
        bench.step()
    assert np.diff(bench.commands, axis=0)[-1, 0] == pytest.approx(0.03, abs=1e-6)
    bench.tick += 15
    decision = bench.step()
    assert decision.mode is Mode.RUN and not decision.is_violation
    assert np.diff(bench.commands, axis=0)[-1, 0] <= 0.016 + 1e-9


def test_the_delay_is_counted_from_the_observation_to_the_first_command():
    bench = Bench().started()
    assert bench.controller.applied_id == -1
    bench.tick = 7
    bench.step(bench.chunk(ramp(0, 0.001), start=3, observed=2))
    assert (bench.controller.applied_id, bench.controller.delay_ticks) == (1, 5)
    bench.step()
    assert bench.controller.delay_ticks == 5, "of its first command"


def test_a_seam_is_where_one_chunk_takes_over_from_another_while_running():
    bench = Bench().started()
    first = bench.step(bench.chunk(ramp(0, 0.001)))
    second = [bench.step(bench.chunk(ramp(0, 0.001))), bench.step()]
    assert (first.is_seam, [d.is_seam for d in second]) == (False, [True, False])
    bench.step(sensed=False)
    bench.step(bench.chunk(ramp(0, 0.001)))
    after_hold = bench.step(bench.chunk(ramp(0, 0.001)))
    assert after_hold.mode is Mode.RUN and not after_hold.is_seam


def box(command):
    """Joint 0 stays below 0.3, but asks politely only up to 0.35."""
    if command[0] > 0.35:
        return None
    return np.minimum(command, [0.3, 1.0])


def wall(command):
    """Both sides of a wall are free."""
    return None if 0.35 < command[0] < 0.5 else command


def broken(command):
    raise RuntimeError("a mistake of the robot's owner")


def vague(command):
    return [np.nan] * len(command)


def wild(command):
    return np.array([9.0, 9.0])


def writing(command):
    command[:] = 9.0
    return [0.0, 0.5]


HERE = "tests.robot_bridge.test_controller_faults."


def test_a_workspace_changes_a_command_and_what_it_says_is_clamped_again():
    bench = Bench(workspace=HERE + "box").running(ramp(0.0, 0.02, 64))
    decisions = [bench.step() for _ in range(16)]
    assert max(d.command[0] for d in decisions) <= 0.3 and decisions[-1].mode is Mode.RUN
    assert decisions[-1].workspace and not decisions[2].workspace
    bench = Bench(workspace=HERE + "wild").running(STILL)
    np.testing.assert_allclose(bench.commands[-1], np.array([0.0, 0.5]) + STEP)


def test_braking_does_not_coast_into_what_is_forbidden_either():
    bench = Bench(workspace=HERE + "wall").running(ramp(0.0, 0.045, 64))
    while bench.commands[-1][0] < 0.31:
        bench.step()
    before = bench.commands[-1]
    decision = bench.step(sensed=False)
    assert where(decision) == (Mode.HOLD, Cause.STALE_STATE) and decision.workspace
    assert (decision.command == before).all() and (bench.step(stop=Cause.REQUEST).command == before).all()


def behind_the_wall(command):
    """Sends whoever comes near the wall to its other side, which no step reaches."""
    return None if 0.35 < command[0] < 0.5 else np.array([0.9, 0.5]) if command[0] > 0.32 else command


def test_what_the_limits_leave_of_another_command_is_asked_about_again():
    bench = Bench(workspace=HERE + "behind_the_wall").running(ramp(0.0, 0.03, 64))
    seen = [bench.step() for _ in range(12)]
    assert max(decision.command[0] for decision in seen) <= 0.35
    assert (Mode.HOLD, Cause.WORKSPACE) in map(where, seen)


def agreeing(command):
    return [True] * len(command)


def wordy(command):
    return [str(value) for value in command]


@pytest.mark.parametrize("name", ["broken", "vague", "agreeing", "wordy"])
def test_a_workspace_that_fails_refuses_the_chunk(name):
    bench = Bench(workspace=HERE + name).started()
    decision = bench.step(bench.chunk(STILL))
    assert decision.reject is Reject.WORKSPACE and decision.mode is Mode.READY


def test_a_refused_command_holds_at_once_and_a_policy_that_insists_is_stopped():
    bench = Bench(workspace=HERE + "wall", max_hold_s=0.5).running(ramp(0.0, 0.045, 64))
    decision = bench.step()
    while decision.mode is Mode.RUN:
        before, decision = bench.commands[-1], bench.step()
    assert where(decision) == (Mode.HOLD, Cause.WORKSPACE) and decision.workspace and decision.chunk is None
    assert (decision.command == before).all(), "no coasting on into what is forbidden"
    seen = set()
    for _ in range(40):
        decision = bench.step(bench.chunk(ramp(0.8, 0.0)))
        seen.add(where(decision))
        assert decision.command[0] <= 0.35
    assert decision.mode is Mode.STOP and {(Mode.HOLD, Cause.RECOVERING), (Mode.HOLD, Cause.WORKSPACE)} <= seen


def test_a_chunk_that_begins_in_a_forbidden_place_is_refused_and_the_one_in_use_goes_on():
    bench = Bench(workspace=HERE + "box").running(STILL)
    decision = bench.step(bench.chunk(ramp(0.4, 0.0)))
    assert decision.reject is Reject.WORKSPACE and decision.mode is Mode.RUN


def test_a_workspace_cannot_write_into_our_command():
    bench = Bench(workspace=HERE + "writing").running(STILL)
    assert (bench.commands[-1] == [0.0, 0.5]).all()


@pytest.mark.parametrize("name", ["nobody", "no.such.module", "tests.robot_bridge.bench.PERIOD_NS", HERE + "nobody"])
def test_a_workspace_that_is_not_there_is_told_before_the_start(name):
    with pytest.raises(EdgewamError, match=r"workspace"):
        Controller({**CONFIG, "workspace": name})
    assert load_workspace(None) is None

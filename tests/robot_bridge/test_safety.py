"""The filter and the check that does not know it: whatever is asked for, the next command keeps every limit, and braking can."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewam.robot_bridge.control.filter import bounded, braking_step, follow
from edgewam.robot_bridge.control.motion import Motion
from edgewam.robot_bridge.control.safety import Limits, Watch, is_violation, mask_to_bits
from edgewam.robot_bridge.records.wires import log_layout
from tests.robot_bridge.bench import ACCELERATION, CONFIG, LOWER, STEP, UPPER
from tests.robot_bridge.fakes import SPEC

PLAIN = Limits.from_rates(CONFIG)
SMOOTH = Limits.from_rates({**CONFIG, "max_acceleration": ACCELERATION})
CHANGE = SMOOTH.max_change


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ([0.06, 0.6], False),
        ([0.0600001, 0.5], True),
        ([0.0, 0.39], True),
        ([np.nan, 0.5], True),
        ([0.0, np.inf], True),
        ([0.0, 0.5], False),
    ],
)
def test_violations_of_the_velocity_limit_are_seen(command, expected):
    assert is_violation(np.array(command), np.array([0.0, 0.5]), LOWER, UPPER, STEP) is expected


def test_violations_of_the_range_are_seen_without_a_predecessor():
    assert is_violation(np.array([1.1, 0.5]), None, LOWER, UPPER, STEP)
    assert is_violation(np.array([0.0, -0.001]), None, LOWER, UPPER, STEP)
    assert not is_violation(np.array([1.0, 0.0]), None, LOWER, UPPER, STEP)


@pytest.mark.parametrize(
    ("last_step", "step", "expected"),
    [
        (0.0, 0.016, False),
        (0.0, 0.0161, True),
        (None, 0.0161, True),
        (0.05, 0.034, False),
        (0.05, 0.0, True),
        (-0.01, 0.01, True),
    ],
)
def test_violations_of_the_acceleration_limit_are_seen(last_step, step, expected):
    before = None if last_step is None else np.array([last_step, 0.0])
    command = np.array([step, 0.5])
    assert is_violation(command, np.array([0.0, 0.5]), LOWER, UPPER, STEP, before, CHANGE) is expected
    assert not is_violation(command, np.array([0.0, 0.5]), LOWER, UPPER, STEP, before), "no limit, no violation"


def test_the_watch_begins_from_rest_after_an_anchor_and_after_a_gap():
    watch = Watch(SMOOTH)
    assert not watch.is_violation(0, np.array([0.9, 0.5]), is_anchor=True)
    watch.sent(0, np.array([0.9, 0.5]), is_anchor=True)
    watch.sent(1, np.array([0.884, 0.5]))
    assert not watch.is_violation(2, np.array([0.852, 0.5])), "the step may grow by 0.016"
    assert watch.is_violation(4, np.array([0.852, 0.5])), "it stood in between"
    assert not watch.is_violation(2, np.array([0.0, 0.5]), is_anchor=True), "a pose taken anew has no predecessor"


@given(st.floats(0, 10), st.floats(1e-4, 2.0))
def test_the_braking_step_uses_its_room_and_no_more(room, change):
    step = float(braking_step(np.array(room), np.array(change)))
    assert step >= 0
    covered, left = 0.0, step
    while left > 0:
        covered, left = covered + left, left - change
    assert covered == pytest.approx(room, rel=1e-6, abs=1e-9)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=2), st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_whatever_passes_the_clamps_is_no_violation(target, previous):
    last = np.array(previous)
    filtered, _ = follow(np.array(target), None, last, np.zeros(2), PLAIN, PLAIN.max_step)
    assert not is_violation(last + filtered.step, last, LOWER, UPPER, STEP)
    assert mask_to_bits(filtered.ranged) == sum(1 << j for j in range(2) if not LOWER[j] <= target[j] <= UPPER[j])


def test_without_an_acceleration_limit_a_near_target_is_reached_at_once():
    filtered, lead = follow(np.array([0.05, 0.5]), None, np.array([0.0, 0.5]), np.zeros(2), PLAIN, PLAIN.max_step)
    assert filtered.step[0] == pytest.approx(0.05) and not (filtered.slowed | filtered.smoothed | filtered.ranged).any()
    assert (lead == [0.05, 0.5]).all()


actions = st.one_of(
    st.tuples(st.just("follow"), st.lists(st.floats(-3, 3), min_size=2, max_size=2), st.floats(0.1, 1)),
    st.tuples(st.sampled_from(["brake", "freeze", "skip"])),
    st.tuples(st.just("redirect"), st.lists(st.floats(-3, 3), min_size=2, max_size=2)),
)


@given(st.booleans(), st.tuples(st.floats(-1.2, 1.2), st.floats(-0.1, 1.1)), st.lists(actions, max_size=60))
def test_no_sequence_of_moves_breaks_range_velocity_or_acceleration(is_smooth, pose, walk):
    limits = SMOOTH if is_smooth else PLAIN
    motion, watch, tick = Motion(limits, 4, np.array(pose), 0), Watch(limits), 0
    watch.sent(0, motion.last, is_anchor=True)
    for name, *arguments in walk:
        tick += 5 if name == "skip" else 1
        motion.begin(tick)
        match name:
            case "follow":
                command, _ = motion.follow(np.array(arguments[0]), limits.max_step * arguments[1])
            case "redirect":
                command = motion.redirect(np.array(arguments[0]), limits.max_step)
            case "freeze":
                command = motion.freeze()
            case _:
                command = motion.brake()
        assert not watch.is_violation(tick, command)
        watch.sent(tick, command)
        motion.commit(command)
    for _ in range(20):  # from whatever it was doing it comes to rest, and within its range
        tick += 1
        motion.begin(tick)
        command = motion.brake()
        assert not watch.is_violation(tick, command)
        watch.sent(tick, command)
        motion.commit(command)
    assert motion.is_at_rest and (motion.last >= LOWER - 1e-9).all() and (motion.last <= UPPER + 1e-9).all()


def walk_to(target_of, limits, ticks, start=(0.0, 0.5)):
    motion, path = Motion(limits, 4, np.array(start), 0), []
    for tick in range(1, ticks):
        motion.begin(tick)
        command, _ = motion.follow(np.array([target_of(tick), 0.5]), limits.max_step)
        motion.commit(command)
        path.append(command[0])
    return np.array(path)


def test_a_far_target_is_reached_without_shooting_past_it():
    path = walk_to(lambda tick: 0.8, SMOOTH, 60)
    assert path.max() <= 0.8 + 1e-9 and path[-1] == pytest.approx(0.8)
    assert np.diff(path).max() == pytest.approx(0.06), "at full speed in between"
    end = walk_to(lambda tick: 5.0, SMOOTH, 60)
    assert end.max() <= 1.0 + 1e-9 and end[-1] == pytest.approx(1.0), "nor past the end of the range"


def test_a_gentle_path_is_followed_exactly_under_an_acceleration_limit():
    def path_of(tick):
        return 0.4 * np.sin(2 * np.pi * tick / 100) if tick > 0 else 0.0

    # starts with a step of 0.025, which takes two ticks to catch up with; from then on no lag at all
    path = walk_to(path_of, SMOOTH, 100)
    wanted = np.array([path_of(tick) for tick in range(1, 100)])
    np.testing.assert_allclose(path[6:], wanted[6:], atol=1e-9)


def test_a_ramp_brakes_in_equal_steps_or_as_gently_as_the_acceleration_limit_says():
    gentle = Limits.from_rates({**CONFIG, "max_acceleration": [10.0, 60.0]})  # 0.004 per tick and tick: less than a fifth of 0.03
    for limits, expected in ((PLAIN, [0.024, 0.018, 0.012, 0.006, 0]), (gentle, [0.026, 0.022, 0.018, 0.014, 0.01])):
        motion = Motion(limits, 4, np.array([-1.0, 0.5]), 0)
        for tick in range(1, 40):
            motion.begin(tick)
            motion.commit(motion.follow(np.array([0.03 * tick - 1.0, 0.5]), limits.max_step)[0])
        before = motion.last[0]
        steps = []
        for tick in range(40, 45):
            motion.begin(tick)
            motion.commit(motion.brake())
            steps.append(motion.last[0] - before)
            before = motion.last[0]
        np.testing.assert_allclose(steps, expected, atol=1e-9)


def test_frozen_is_at_once_or_as_hard_as_the_limit_allows():
    for limits, expected in ((PLAIN, [0.0]), (SMOOTH, [0.034, 0.018, 0.002, 0.0])):
        last, step = np.array([0.2, 0.5]), np.array([0.05, 0.0])
        taken = []
        for _ in expected:
            step = bounded(np.zeros(2), last, step, limits)
            last = last + step
            taken.append(step[0])
        np.testing.assert_allclose(taken, expected, atol=1e-12)


@pytest.mark.parametrize(("num_joints", "lease_ticks", "message"), [(33, 5, "1 to 32 joints"), (32, 0, "in force for a tick")])
def test_a_robot_that_the_log_or_the_lease_has_no_room_for_is_refused_when_it_is_described(num_joints, lease_ticks, message):
    log = np.zeros(1, log_layout(2))
    log["range_clamps"][0] = mask_to_bits(np.ones(32, bool))
    with pytest.raises(OverflowError):
        log["range_clamps"][0] = mask_to_bits(np.ones(33, bool))
    names, ones = tuple(map(str, range(num_joints))), np.ones(num_joints)
    with pytest.raises(AssertionError, match=message):
        replace(SPEC, joint_names=names, lower=-ones, upper=ones, max_velocity=ones, lease_ticks=lease_ticks)


@pytest.mark.parametrize("field", ["lower", "upper", "max_velocity", "max_acceleration"])
def test_limits_are_finite(field):
    with pytest.raises(AssertionError, match=f"{field} must be finite"):
        replace(SPEC, **{field: np.array([-np.inf if field == "lower" else np.inf, 1.0])})

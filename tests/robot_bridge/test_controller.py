"""One control tick at a time: what a chunk may do to the arm, and what it may not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewam.core.records import ActionChunk
from edgewam.robot_bridge.chunks import Reject, to_record
from edgewam.robot_bridge.controller import Controller, Sensed
from edgewam.robot_bridge.modes import Cause, Mode
from edgewam.robot_bridge.safety import clamp, is_violation, mask_to_bits
from edgewam.robot_bridge.shm_record import SharedRecord
from edgewam.robot_bridge.wires import layouts

PERIOD_NS = 20_000_000
LOWER, UPPER, STEP = np.array([-1.0, 0.0]), np.array([1.0, 1.0]), np.array([0.06, 0.1])
CONFIG = {
    "lower": LOWER,
    "upper": UPPER,
    "max_velocity": STEP * 50,
    "control_hz": 50.0,
    "jump_s": 0.15,
    "approach_fraction": 0.25,
    "ramp_ticks": 4,
    "max_pause_s": 0.5,
    "max_hold_s": 2.0,
    "max_state_age_s": 0.06,
    "max_observation_age_s": 0.5,
}
RECORD = SharedRecord(layouts(2, {})["chunk"])


class Bench:
    """A controller, a tick counter and a robot that reports in time unless told otherwise."""

    def __init__(self, pose=(0.0, 0.5)):
        self.controller = Controller(CONFIG)
        self.tick, self.pose, self.episode, self.ids = 0, np.array(pose, np.float32), 0, 0
        self.commands = []

    def now(self):
        return 10**12 + self.tick * PERIOD_NS

    def chunk(self, actions, start=None, number=None, episode=None, age_ns=PERIOD_NS, observed=None):
        self.ids += 1
        start = self.tick if start is None else start
        actions = np.array(actions) if isinstance(actions, np.ndarray) else np.array(actions, np.float32)
        chunk = ActionChunk(actions, start, start if observed is None else observed, self.now() - age_ns)
        number = self.ids if number is None else number
        return to_record(RECORD, chunk, number, self.episode if episode is None else episode, 0, 0)

    def step(self, received=None, sensed=True, age_ns=4_000_000, **kwargs):
        report = Sensed(self.pose, self.episode, self.now() - age_ns) if sensed else None
        decision = self.controller.step(self.tick, self.now(), report, received, **kwargs)
        self.tick += 1
        if decision.command is not None:
            self.commands.append(decision.command)
        return decision

    def started(self):
        self.step()
        return self


def ramp(start, rate, rows=16):
    return np.stack([start + rate * np.arange(rows), np.full(rows, 0.5)], 1).astype(np.float32)


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
    decision = bench.step(bench.chunk(ramp(0.9, 0.0, rows=64)))
    assert decision.reject is Reject.NONE and (decision.mode, decision.cause) == (Mode.HOLD, Cause.APPROACH)
    while (decision := bench.step()).mode is Mode.HOLD:
        assert np.abs(np.diff(bench.commands[-2:], axis=0)).max() <= 0.25 * STEP[0] + 1e-9
    assert decision.mode is Mode.RUN
    assert 0.9 - bench.commands[-2][0] <= 0.45 + 1e-6, "running again as soon as the chunk is within reach"


def test_an_old_or_broken_robot_report_holds_the_arm():
    for wrong in ({"age_ns": 70_000_000}, {"sensed": False}):
        bench = Bench().started()
        bench.step(bench.chunk(ramp(0, 0.01)))
        decision = bench.step(**wrong)
        assert (decision.mode, decision.cause) == (Mode.HOLD, Cause.STALE_STATE)
        assert bench.step().mode is Mode.RUN
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
    assert bench.step(stop=True).command[0] == pytest.approx(0.09)
    frozen = bench.step(estop=True)
    assert frozen.mode is Mode.ESTOP and (frozen.command == bench.commands[-2]).all()


def test_a_mistake_in_the_filter_is_caught_before_it_is_sent(monkeypatch):
    bench = Bench().started()
    monkeypatch.setattr("edgewam.robot_bridge.controller.clamp", lambda target, *_: (target * np.nan, target > 9, target > 9))
    decision = bench.step(bench.chunk(ramp(0, 0.01)))
    assert decision.is_violation and decision.mode is Mode.ESTOP and decision.chunk is None
    assert (decision.command == [0.0, 0.5]).all()


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


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=2), st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_whatever_passes_the_clamps_is_no_violation(target, previous):
    limits = Controller(CONFIG)._limits
    command, ranged, _ = clamp(np.array(target), np.array(previous), limits, limits.max_step)
    assert not is_violation(command, np.array(previous), LOWER, UPPER, STEP)
    assert mask_to_bits(ranged) == sum(1 << j for j in range(2) if not LOWER[j] <= target[j] <= UPPER[j])


chunks = st.tuples(
    st.lists(st.lists(st.floats(-3, 3, width=32) | st.just(float("nan")), min_size=2, max_size=2), min_size=1, max_size=20),
    st.integers(-20, 3),
)


@given(st.lists(st.one_of(st.none(), chunks), max_size=60), st.lists(st.booleans(), min_size=60, max_size=60))
def test_no_sequence_of_chunks_and_outages_breaks_a_limit(walk, outages):
    bench = Bench().started()
    for entry, is_out in zip(walk, outages, strict=False):
        received = None if entry is None else bench.chunk(np.array(entry[0], np.float32), start=bench.tick + entry[1])
        decision = bench.step(received, age_ns=10**9 if is_out else 4_000_000)
        assert not decision.is_violation
    for before, after in zip(bench.commands, bench.commands[1:], strict=False):
        assert not is_violation(after, before, LOWER, UPPER, STEP)

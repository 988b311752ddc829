"""No sequence of chunks, outages, people and episodes breaks a limit: range, velocity, acceleration, in every schedule."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewam.robot_bridge.control.chunks import Reject
from edgewam.robot_bridge.control.modes import Cause, Mode
from edgewam.robot_bridge.control.safety import Limits, Watch
from edgewam.robot_bridge.control.scheduling import SCHEDULES
from tests.robot_bridge.bench import ACCELERATION, LOWER, STEP, UPPER, Bench
from tests.robot_bridge.test_controller_faults import HERE

TICKS = 250
OUTAGES = (
    {"age_ns": 10**9},
    {"sensed": False},
    {"camera_age_ns": 10**9},
    {"engine_age_ns": 10**10},
    {"is_armed": False},
    {"mute": True},  # no chunks
)


class Walk:
    """A policy that mostly does well, among people and machines that do not; everything is drawn from one seed."""

    def __init__(self, seed, schedule, acceleration, workspace):
        self.random = np.random.default_rng(seed)
        self.bench = Bench(schedule=schedule, max_acceleration=acceleration, workspace=workspace, max_hold_s=0.6, max_rejects=6)
        self.bench.pose = self.random.uniform(LOWER - 0.6, UPPER + 0.6).astype(np.float32)
        self.watch = Watch(Limits.from_rates(self.bench.config))
        self.every = int(self.random.integers(2, 9))
        self.outage, self.outage_left = {}, 0
        self.seen = Counter()
        self.last = (-1, None, np.zeros(2))  # tick, command and step

    def happens(self, probability):
        return self.random.random() < probability

    def actions(self):
        """From where the arm is, in some direction, sometimes off by a little, sometimes by a lot."""
        rows = int(self.random.integers(1, 40))
        if self.happens(0.1):
            return self.random.uniform(-3, 3, (rows, 2))
        here = self.bench.commands[-1] if self.bench.commands else self.bench.pose
        offset = self.random.normal(0, 0.5 if self.happens(0.1) else 0.02, 2)
        rate = self.random.normal(0, 0.03, 2)
        actions = here + offset + rate * np.arange(rows)[:, None] + self.random.normal(0, 0.005, (rows, 2))
        if self.happens(0.03):
            actions[self.random.integers(rows), 0] = self.random.choice([np.nan, np.inf])
        return actions

    def chunk(self):
        late = int(self.random.integers(0, 4))
        start, prefix = self.bench.tick - late, int(self.random.integers(0, 8))
        actions = self.actions().astype(np.float32)
        return self.bench.chunk(actions, start=start, prefix_rows=min(prefix, len(actions)))

    def step(self):
        bench = self.bench
        if self.happens(0.02):
            bench.tick += int(self.random.integers(1, 30))
        if self.happens(0.005):
            bench.episode += 1
        if self.happens(0.02):
            bench.pose = self.random.uniform(LOWER - 0.2, UPPER + 0.2).astype(np.float32)
        if self.outage_left == 0 and self.happens(0.02):
            self.outage, self.outage_left = self.random.choice(OUTAGES), int(self.random.integers(1, 15))
        event = dict(self.outage) if self.outage_left else {}
        self.outage_left = max(0, self.outage_left - 1)
        is_mute = event.pop("mute", False)
        if bench.tick % self.every == 0 and not is_mute:
            event["received"] = self.chunk()
        if self.happens(0.005):
            event["stop"] = Cause.REQUEST
        event["reset"] = self.happens(0.1)
        event["estop"] = self.happens(0.0005)
        self.check(bench.tick, bench.step(**event), event)

    def check(self, tick, decision, event):
        self.seen.update(repr(member) for member in (decision.mode, decision.cause, decision.reject))
        self.seen["smoothed"] += decision.acceleration_clamps > 0
        self.seen["blended"] += decision.num_blended > 1
        assert not decision.is_violation
        if decision.command is None:
            return
        assert np.isfinite(decision.command).all()
        assert not self.watch.is_violation(tick, decision.command, is_anchor=decision.is_anchor)
        if decision.is_anchor:
            assert (np.abs(decision.command - self.bench.pose) <= STEP * 50 * 0.15 + 1e-6).all(), (
                "an anchor is where the robot is"
            )
        self.watch.sent(tick, decision.command, is_anchor=decision.is_anchor)
        self.check_speed(tick, decision)
        if decision.chunk is not None:
            assert decision.mode is Mode.RUN and event.get("is_armed", True) and event.get("sensed", True)

    def check_speed(self, tick, decision):
        """What does not follow a chunk only slows down, and an approach is slow."""
        last_tick, last, last_step = self.last
        step = np.zeros(2) if decision.is_anchor or last is None else decision.command - last
        before = np.abs(last_step) if tick == last_tick + 1 else np.zeros(2)
        is_approaching = decision.cause is Cause.APPROACH and decision.mode is Mode.HOLD
        if decision.mode is not Mode.RUN:
            allowed = np.maximum(before, STEP * 0.25) if is_approaching else before
            assert (np.abs(step) <= allowed + 1e-9).all(), decision
        self.last = (tick, decision.command, step)


def walk(seed, schedule, acceleration, workspace):
    made = Walk(seed, schedule, acceleration, workspace)
    for _ in range(TICKS):
        made.step()
    for _ in range(40):
        tick = made.bench.tick
        made.check(tick, made.bench.step(stop=Cause.REQUEST), {})
    commands = made.bench.commands
    assert made.bench.controller.is_at_rest and (not commands or (commands[-1] == commands[-2]).all())
    return made.seen


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(SCHEDULES),
    st.sampled_from([None, ACCELERATION, np.array([3.0, 4.0])]),
    st.sampled_from([None, None, HERE + "box", HERE + "wall", HERE + "wild"]),
)
def test_no_walk_breaks_a_limit_and_every_stop_ends_at_rest(seed, schedule, acceleration, workspace):
    walk(seed, schedule, acceleration, workspace)


def test_the_walks_come_by_everything_that_matters():
    seen = Counter()
    for seed in range(24):
        acceleration, workspace = [(None, None), (ACCELERATION, None), (ACCELERATION, HERE + "wall")][seed % 3]
        seen += walk(seed, SCHEDULES[seed % 4], acceleration, workspace)
    everything = {repr(member) for kind in (Mode, Cause, Reject) for member in kind} | {"smoothed", "blended"}
    elsewhere = [Cause.VIOLATION, Cause.ORPHANED, Cause.OLD_CONTEXT, Reject.OLD_CONTEXT, Reject.SHAPE, Reject.DTYPE]
    elsewhere += [Reject.REPLAYED, Reject.FUTURE, Reject.STALE, Reject.BAD_TIME]
    missing = everything - set(map(repr, elsewhere)) - set(+seen)
    assert not missing, missing
    assert seen[repr(Mode.RUN)] > 1000

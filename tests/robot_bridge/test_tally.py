"""Counting a run while it lasts gives what counting all of its log at once gives, and the limits are checked independently."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from edgewam.robot_bridge.control.chunks import Reject
from edgewam.robot_bridge.control.modes import Cause, Mode
from edgewam.robot_bridge.counting.smoothness import smoothness
from edgewam.robot_bridge.counting.tally import Tally
from edgewam.robot_bridge.records.wires import log_layout

HZ, PERIOD_NS = 50.0, 20_000_000
CONFIG = {"control_hz": HZ, "lower": [-1.0, 0.0], "upper": [1.0, 1.0], "max_velocity": [3.0, 5.0], "max_acceleration": None}
NAMES = ("elbow", "gripper")
MS = 1_000_000


def a_log(n, seed=0):
    """A run of `n` commands with every kind of event; all of them are lawful."""
    rng = np.random.default_rng(seed)
    log = np.zeros(n, log_layout(2))
    log["tick"] = np.cumsum(rng.choice([1, 1, 1, 1, 4], n)) - 1
    log["deadline_ns"] = 10**12 + log["tick"] * PERIOD_NS
    log["woken_ns"] = log["deadline_ns"] + rng.exponential(50_000, n).astype(np.int64)
    log["sent_ns"] = log["woken_ns"] + rng.exponential(3e6, n).astype(np.int64)
    log["episode"] = np.arange(n) // 40
    log["mode"] = rng.choice([Mode.READY, Mode.RUN, Mode.HOLD], n, p=[0.05, 0.8, 0.15])
    log["cause"] = np.where(log["mode"] == Mode.HOLD, rng.choice([Cause.NO_CHUNK, Cause.STALE_STATE, Cause.APPROACH], n), 0)
    chunk = np.cumsum(rng.random(n) < 0.2) + (5 << 32)
    log["chunk_id"] = np.where(log["mode"] == Mode.RUN, chunk, -1)
    log["is_received"] = rng.random(n) < 0.5
    log["reject"] = np.where(log["is_received"], rng.choice([Reject.NONE, Reject.JUMP, Reject.STALE], n, p=[0.8, 0.1, 0.1]), 0)
    log["infer_ns"] = rng.integers(10 * MS, 30 * MS, n)
    for name, before in (("t_chunk_ns", 4), ("t_begin_ns", 20), ("t_frame_ns", 25), ("t_capture_ns", 40)):
        log[name] = log["sent_ns"] - before * MS
    log["context_number"] = rng.choice([-1, 3], n)
    log["context_tick"] = log["tick"] - rng.integers(0, 48, n)
    log["range_clamps"], log["step_clamps"] = rng.choice([0, 2], n), rng.choice([0, 1, 3], n)
    log["acceleration_clamps"] = rng.choice([0, 1], n)
    log["applied_tick"][1:], log["applied_ns"][1:] = log["tick"][:-1], log["sent_ns"][:-1] + 6 * MS
    log["applied_tick"][0] = -1
    walk = np.cumsum(rng.uniform(-0.05, 0.05, (n, 2)), 0)
    log["command"] = np.clip(walk + np.array([0.0, 0.5]), CONFIG["lower"], CONFIG["upper"])
    return log


def counted(log, batch=10**9, num_ticks=None):
    tally = Tally(CONFIG, NAMES)
    for begin in range(0, len(log), batch):
        tally.add(log[begin : begin + batch])
    return tally.report(tally.last_tick + 1 if num_ticks is None else num_ticks)


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_how_the_log_arrives_changes_nothing(batch):
    log = a_log(500)
    at_once, in_parts = counted(log).to_json(), counted(log, batch).to_json()
    for jerk in ("seam_jerk", "inner_jerk"):  # sums in another order
        assert in_parts.pop(jerk) == pytest.approx(at_once.pop(jerk), rel=1e-12)
    assert in_parts == at_once


def test_counts_are_those_of_the_rows():
    log = a_log(500)
    report = counted(log, 50)
    assert report.sent == 500 and report.ticks == log["tick"][-1] + 1 == report.sent + report.missed
    assert (report.ready, report.run, report.held) == tuple((log["mode"] == m).sum() for m in (Mode.READY, Mode.RUN, Mode.HOLD))
    held = Counter(Cause(int(c)).name.lower() for c in log["cause"][log["mode"] == Mode.HOLD])
    assert report.held_by_cause == held and sum(held.values()) == report.held
    assert report.rejected_by_cause == Counter(Reject(int(r)).name.lower() for r in log["reject"] if r)
    supplied = log[log["chunk_id"] >= 0]
    assert report.chunks_applied == len(np.unique(supplied["chunk_id"]))
    assert report.chunks_received == report.chunks_applied + report.chunks_superseded + report.rejected
    lateness = log["sent_ns"] - log["deadline_ns"]
    assert report.late_by_share == {f"{share} %": (lateness > share * PERIOD_NS / 100).sum() for share in (10, 50, 100)}
    assert report.late == report.late_by_share["10 %"] and report.lateness_ms.max == round(lateness.max() / 1e6, 3)
    assert report.longest_gap_ticks == 3
    by_joint = {name: (log["step_clamps"] >> j & 1).sum() for j, name in enumerate(NAMES)}
    assert report.clamped_by_limit["velocity"] == by_joint and report.clamped_by_limit["acceleration"].keys() == {"elbow"}
    together = log["range_clamps"] | log["step_clamps"] | log["acceleration_clamps"]
    assert report.clamped == (together != 0).sum() and report.clamped_by_joint["elbow"] == (together & 1).sum()
    assert report.violations == report.violations_in_log == 0


def test_changes_of_the_mode_are_counted_with_their_cause():
    log = a_log(8)
    log["mode"] = [Mode.READY, Mode.RUN, Mode.HOLD, Mode.HOLD, Mode.RUN, Mode.HOLD, Mode.STOP, Mode.STOP]
    log["cause"] = [0, 0, Cause.NO_CHUNK, Cause.NO_CHUNK, 0, Cause.STALE_STATE, Cause.STALE_STATE, Cause.STALE_STATE]
    report = counted(log, 3)
    assert report.transitions == {
        "INIT > READY": 1, "READY > RUN": 1, "RUN > HOLD no_chunk": 1, "HOLD > RUN": 1, "RUN > HOLD stale_state": 1,
        "HOLD > STOP stale_state": 1,
    }  # fmt: skip
    tally = Tally(CONFIG, NAMES)
    tally.add(log[:6])
    assert tally.latch is None
    tally.add(log[6:])
    assert f"tick {log['tick'][6]}" in tally.latch and "starved" in tally.latch


def test_the_way_from_image_to_robot_is_measured_in_parts_that_add_up():
    report = counted(a_log(500), 9)
    parts = report.age_parts_ms
    p50 = {name: quantiles.p50 for name, quantiles in parts.items()}
    assert p50 == pytest.approx(
        {
            "capture_to_frame": 15.0, "frame_to_engine": 5.0, "inference": 16.0, "chunk_to_command": 4.0,
            "command_to_robot": 6.0, "capture_to_robot": 46.0,
        },
        abs=0.01,
    )  # fmt: skip
    assert report.observation_to_command_ms.p50 == pytest.approx(40.0, abs=0.01)
    assert parts["inference"].n == report.observation_to_command_ms.n == report.chunks_applied
    assert parts["command_to_robot"].n == 499, "the robot's word on the last command has not come"
    assert report.chunks_applied - 1 <= parts["capture_to_robot"].n <= report.chunks_applied


def test_the_age_of_the_context_is_counted_where_there_is_one():
    log = a_log(400)
    report = counted(log, 30)
    planned = log[(log["chunk_id"] >= 0) & (log["context_number"] >= 0)]
    ages = np.sort(planned["tick"] - planned["context_tick"])
    assert report.context_age_ticks.n == len(ages) and report.context_age_ticks.max == ages[-1]
    assert abs(report.context_age_ticks.p50 - ages[(len(ages) - 1) // 2]) <= 1


def test_jerk_is_that_of_the_commands_in_one_piece_and_never_across_a_hold():
    log = a_log(64)
    log["tick"], log["episode"], log["mode"] = np.arange(64), 0, Mode.RUN
    log["chunk_id"] = np.arange(64) // 16
    expected = smoothness(list(log["command"]), [0, 16, 32, 48], np.array(CONFIG["max_velocity"]), HZ)
    report = counted(log, 10)
    assert report.seam_jerk == pytest.approx(expected.seam_jerk) and report.inner_jerk == pytest.approx(expected.inner_jerk)
    log["mode"][::3] = Mode.HOLD
    assert counted(log, 10).seam_jerk is None


@pytest.mark.parametrize(("joint", "value"), [(0, 1.1), (1, -0.01), (0, np.nan), (1, np.inf)])
def test_a_command_out_of_range_is_a_violation(joint, value):
    log = a_log(100)
    log["command"][50, joint] = value
    assert counted(log, 7).violations_in_log >= 1


def test_a_step_that_is_too_long_is_a_violation_except_where_the_robot_was_put_anew():
    log = a_log(100)
    log["episode"], log["command"] = 0, [0.0, 0.5]
    log["command"][50:, 0] = 0.061  # 3 rad/s allow 0.06
    assert counted(log, 7).violations_in_log == 1
    log["is_anchor"][50] = 1
    assert counted(log, 7).violations_in_log == 0


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_a_speed_that_changes_too_fast_is_a_violation_unless_the_arm_stood_or_is_unknown(batch):
    config = {**CONFIG, "max_acceleration": [25.0, 25.0]}  # 0.01 rad per tick and tick
    log = a_log(20)
    log["tick"], log["command"] = np.arange(20), [0.0, 0.5]

    def violations(positions, **fields):
        log["command"][:, 0] = np.concatenate([positions, np.full(20 - len(positions), positions[-1])])
        log["is_anchor"], log["tick"] = 0, np.arange(20)
        for name, value in fields.items():
            log[name] = value
        log["is_anchor"][0] = 1  # as in every run
        tally = Tally(config, NAMES)
        for begin in range(0, 20, batch):
            tally.add(log[begin : begin + batch])
        return tally.report(20).violations_in_log

    assert violations([0.0, 0.01, 0.03, 0.06, 0.08, 0.09]) == 0, "up and down by the limit"
    assert violations([0.0, 0.011, 0.022, 0.022]) == 2, "too fast a start, too sudden an end"
    assert violations([0.0, 0.01, 0.03, 0.06, 0.06]) == 1, "from 0.03 per tick to nothing"
    skipped = np.arange(20) + (np.arange(20) >= 4)
    assert violations([0.0, 0.01, 0.03, 0.06, 0.06], tick=skipped) == 0, "it stood in the tick without a command"
    assert violations([0.0, 0.0, 0.9, 0.9], is_anchor=np.arange(20) == 2) == 0


def test_lost_rows_are_reported_and_nothing_is_concluded_across_the_gap():
    log = a_log(100)
    log["tick"], log["episode"], log["command"] = np.arange(100), 0, [0.0, 0.5]
    log["command"][60:, 0] = 0.1 + 0.022 * np.arange(40)  # as if it had moved long before
    tally = Tally({**CONFIG, "max_acceleration": [50.0, 50.0]}, NAMES)
    tally.add(log[:30])
    tally.add(log[60:], lost=30)
    report = tally.report(100)
    assert report.lost_log_rows == 30 and report.sent == 100 and report.missed == 0 and report.longest_gap_ticks == 0
    assert report.violations_in_log == 0
    assert report.sent == report.ready + report.run + report.held + report.stopped + report.lost_log_rows


def test_a_run_without_a_command_has_a_report():
    report = Tally(CONFIG, NAMES).report(0)
    assert report.sent == report.missed == 0 and report.final_mode == "INIT" and report.lateness_ms.p50 is None

"""The benchmarks of the bridge count rightly: from log rows made by hand, whose figures are known."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bridge_rows, observation_age, real_time_success, reliability, soak_judge
from benchmarks.bridge_figures import first_commands, stretch, violations
from benchmarks.marks import with_block
from benchmarks.results import ROOT
from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.control.chunks import Reject
from edgewam.robot_bridge.control.modes import Cause, Mode
from edgewam.robot_bridge.records.wires import log_layout
from tests.robot_bridge.fakes import SPEC
from tests.waiting import wait_for

MS, PERIOD_NS, HZ = 1_000_000, 20_000_000, 50.0


def log(ticks=100, every=8, delay=2):
    """A run without a fault: a chunk per `every` ticks that commands from `delay` ticks after its observation on."""
    rows = np.zeros(ticks, log_layout(2))
    tick = np.arange(ticks)
    rows["tick"], rows["deadline_ns"] = tick, 10**12 + tick * PERIOD_NS
    rows["sent_ns"] = rows["deadline_ns"] + MS
    rows["mode"], rows["command"] = Mode.RUN, np.stack([tick * 0.001, np.full(ticks, 0.5)], 1)
    number = np.maximum(tick - delay, 0) // every
    rows["chunk_id"], rows["observation_tick"] = number, number * every
    rows["t_capture_ns"] = 10**12 + number * every * PERIOD_NS - 4 * MS
    for name, after in (("t_frame_ns", 3), ("t_begin_ns", 5), ("t_chunk_ns", 16)):
        rows[name] = rows["t_capture_ns"] + after * MS
    rows["chunk_id"][:delay], rows["mode"][:delay] = -1, Mode.READY
    rows["applied_tick"], rows["applied_ns"] = tick - 1, rows["deadline_ns"] - 4 * MS
    return rows


def test_an_undisturbed_stretch():
    found = stretch(log(), 0, 100, SPEC, HZ)
    assert (found["missed"], found["held"], found["violations"], found["chunks_applied"]) == (0, 0, 0, 13)
    assert found["lateness"] == {"n": 100, "p50_ms": 1.0, "p99_ms": 1.0, "max_ms": 1.0}
    assert found["chunk_hz"] == pytest.approx(13 / 2.0)


def test_missed_held_and_refused_are_counted_in_their_own_stretch():
    rows = log()
    rows["mode"][60:70], rows["cause"][60:70] = Mode.HOLD, Cause.CAMERA
    rows["reject"][61] = Reject.STALE
    rows = np.delete(rows, [10, 11])
    first, second = stretch(rows, 0, 50, SPEC, HZ), stretch(rows, 50, 100, SPEC, HZ)
    assert (first["missed"], first["held"]) == (2, 0) and first["missed_percent"] == 4.0
    assert (second["missed"], second["held_by_cause"], second["hold_percent"]) == (0, {"camera": 10}, 20.0)
    assert second["rejected_by_cause"] == {"stale": 1} and not first["rejected_by_cause"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5, -1.2])
def test_a_command_out_of_bounds_is_a_violation(bad):
    rows = log()
    rows["command"][50, 0] = bad
    assert violations(rows, SPEC, HZ) >= 1


def test_a_step_above_the_velocity_limit_is_a_violation_but_a_new_episode_is_not():
    rows = log()
    rows["command"][50:, 0] += 0.2  # the limit is 0.06 per tick
    assert violations(rows, SPEC, HZ) == 1
    rows["episode"][50:] = 1
    assert violations(rows, SPEC, HZ) == 0


def test_the_parts_of_an_age_add_up_to_the_whole():
    found = observation_age.ages(log())
    assert found["inference"]["p50_ms"] == 11.0 and found["capture to frame published"]["p50_ms"] == 3.0
    assert found["capture to first command sent"]["p50_ms"] == 2 * 20 + 4 + 1
    assert found["command sent to robot"]["p50_ms"] == 15.0
    assert found["capture to robot"]["p50_ms"] == sum(found[name]["p50_ms"] for name in observation_age.PARTS)


def test_a_time_that_runs_backwards_is_no_age():
    rows = log()
    rows["t_frame_ns"] -= 10 * MS
    with pytest.raises(EdgewamError, match="capture to frame published"):
        observation_age.ages(rows)
    with pytest.raises(EdgewamError, match="longer"):
        observation_age.ages(rows[:0])


def test_delays_and_their_median():
    delays = real_time_success.delays_of(log())
    assert delays == Counter({2: 13}) and real_time_success.median(delays) == 2
    assert real_time_success.median(Counter({1: 1, 2: 1, 9: 1})) == 2
    with pytest.raises(EdgewamError, match="No chunk"):
        real_time_success.median(Counter())


def test_episodes_of_a_run_become_results():
    rows = log()
    rows["episode"][40:] = 1
    rows["mode"][42:45] = Mode.HOLD
    outcomes = [
        {"seed": 7, "ticks": 39, "reward": 4, "success_tick": 30, "strict_success": True},
        {"seed": 8, "ticks": 60, "reward": 2, "success_tick": None, "strict_success": False},
    ]
    first, second = real_time_success.results_of(rows, outcomes, SPEC)
    assert (first.seed, first.strict_tick, first.success_tick, first.held_ticks) == (7, 39, 30, 0)
    assert (second.seed, second.strict_tick, second.held_ticks) == (8, None, 3)
    assert first.chunks + second.chunks == len(first_commands(rows)) + 1, "one chunk served both"


def judged(rows, memory, **conditions):
    known = {"minutes": 100 / HZ / 60, "control_hz": HZ, "burners": 2, "recorder": True, "cpu": "x", **conditions}
    report = {"is_complete": True, "episodes": [], "faults": [], "real_time": {"io": {"scheduler": "SCHED_FIFO 60"}}}
    return soak_judge.judge(rows, report, memory, SPEC, known)


def flat(first_mb, last_mb):
    return {"io": [(0.0, 9.0, 9.0), (1.0, first_mb, 5.0), (2.0, last_mb, 5.0)]}


def verdicts(record):
    return {gate["gate"]: gate["passed"] for gate in record["gates"]}


def test_a_calm_soak_passes_every_gate():
    record = judged(log(), flat(10.0, 10.1))
    assert all(verdicts(record).values()) and list(record["thirds"]) == list(soak_judge.THIRDS)
    assert sum(third["ticks"] for third in record["thirds"].values()) == record["whole"]["ticks"] == 100
    assert record["memory"]["io"]["growth_percent"] == 1.0


def test_memory_of_a_soak_is_compared_by_medians_of_a_minute():
    looks = [(15.0 * i, 40.0 + 0.01 * i, 20.0) for i in range(81)]
    looks[20] = (300.0, 39.0, 20.0)  # a moment at which the allocator has given memory back, just after the warm-up
    found = soak_judge.growth({"recorder": looks}, 1200.0)["recorder"]
    assert (found["after_warm_up_mb"], found["end_mb"]) == (40.17, 40.78)
    assert len(found["samples"]) == 81


def test_every_gate_of_a_soak_can_be_missed():
    rows = log()
    rows["mode"][:5] = Mode.HOLD
    rows["sent_ns"][40:50] += 30 * MS
    rows["command"][90, 0] = 2.0
    rows = np.delete(rows, range(20, 25))
    record = judged(rows, flat(10.0, 200.0))
    assert not any(verdicts(record).values()), verdicts(record)


def test_a_hold_while_burners_burn_is_told_but_not_judged():
    rows = log()
    rows["mode"][40:50] = Mode.HOLD
    assert verdicts(judged(rows, flat(10.0, 10.0)))["HOLD outside of the burnt third, %"]
    assert not verdicts(judged(rows, flat(10.0, 10.0), burners=0))["HOLD outside of the burnt third, %"]


def test_an_interrupted_soak_is_judged_as_far_as_it_went():
    known = {"minutes": 300 / HZ / 60, "control_hz": HZ, "burners": 2}
    record = soak_judge.judge(log(), None, flat(10.0, 10.0), SPEC, known)
    assert not record["is_complete"] and list(record["thirds"]) == ["first"]
    assert soak_judge.text(record) and reliability.soak_block({"soak": record})


def test_a_block_of_a_document_is_replaced_and_nothing_else():
    text = "a\n<!-- x: made by y -->\nold\n<!-- end of x -->\nb\n"
    assert with_block(text, "x", "new") == "a\n<!-- x: made by y -->\nnew\n<!-- end of x -->\nb\n"
    with pytest.raises(EdgewamError, match="marks"):
        with_block(text, "z", "new")


def test_the_reliability_page_shows_the_committed_results():
    text = reliability.DOC.read_text()
    assert reliability.page(text, reliability.RESULTS / reliability.DEVICE) == text, "run python3 -m benchmarks.reliability"


def test_the_readme_s_row_of_a_soak_tells_what_was_missed_and_what_grew():
    ((label, value),) = bridge_rows.soak_rows(judged(np.delete(log(), range(20, 25)), flat(10.0, 10.4)))
    assert "50 Hz, SCHED_FIFO, 2 busy loops in the middle third, flight recorder on" in label and "NOT" not in label
    assert value.startswith("5.00 %, 0.00 %, ") and value.endswith("+4.0 %")
    known = {"minutes": 300 / HZ / 60, "control_hz": HZ, "burners": 0, "recorder": False}
    ((label, _),) = bridge_rows.soak_rows(soak_judge.judge(log(), None, flat(10.0, 10.0), SPEC, known))
    assert "NOT complete" in label and "busy loops" not in label


def test_burners_go_out_when_the_soak_is_killed():
    code = (
        "import os\nfrom benchmarks.soak import Burners\nburners = Burners()\nburners.start(1)\n"
        "print(burners._processes[0].pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    stat = Path(f"/proc/{int(done.stdout)}/stat")
    wait_for(lambda: not stat.exists() or stat.read_text().split()[2] == "Z", "the burner's end")

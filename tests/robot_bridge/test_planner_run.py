"""The planner as a real process: killed in the middle of a run it is replaced, and the arm goes on with the old context."""

from __future__ import annotations

import os
import signal
import threading

from edgewam.robot_bridge.run import RunSettings, run
from tests.robot_bridge import fakes


def test_a_killed_planner_is_replaced_while_the_arm_goes_on_in_real_time_chunks():
    timers = []

    def kill_later(pids):
        timers.append(threading.Timer(1.5, os.kill, (pids["planner"], signal.SIGKILL)))
        timers[-1].start()

    settings = RunSettings(planner="process", schedule="rtc", episode_ticks=10_000)
    report = run(
        "tests.robot_bridge.split.split", {"prefix_trained": True}, robot=fakes.ROBOT, seconds=5.0, settings=settings,
        on_start=kill_later,
    )  # fmt: skip
    timers[0].join()
    assert report.is_complete and report.violations == report.violations_in_log == 0
    assert report.restarts == {"planner": 1}
    assert report.faults == ["The planner process was ended by SIGKILL."]
    engine, planner = report.processes["engine"], report.processes["planner"]
    assert engine["refresh"] == "process" and engine["refused"] == 0
    assert planner["began_with_empty_memory"] and planner["contexts"] >= 2
    assert report.context_age_ticks.n == report.run >= 100, "it was killed at tick 75"
    assert 0 <= report.context_age_ticks.max <= 64 + 16, "the context's bound, and the rows of the last chunk that used it"
    assert report.chunks_applied >= 10 and report.rejected_by_cause.get("bad_prefix", 0) <= report.chunks_applied

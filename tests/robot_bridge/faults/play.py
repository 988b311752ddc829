"""One row of the matrix at one level: play it, judge it, and say what was seen and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from edgewam.robot_bridge.processes import io_process
from tests.robot_bridge.faults import rig
from tests.robot_bridge.faults.judge import Seen, complaints, judge, out_of_range, steps_too_far, too_sudden
from tests.robot_bridge.faults.matrix import Fault
from tests.robot_bridge.faults.robot import SPEC
from tests.robot_bridge.faults.world import BEGIN, World

RUN_SLACK = 6  # ticks: a timer of the test, a poll of the process that is hit, and what two noisy cores add
EARLY = 25  # a run whose log ends so many ticks before its time was ended


def in_simulated_time(fault: Fault, schedule: str = "replace", acceleration: float | None = None) -> tuple[Seen, list[str]]:
    """What was seen, and what is wrong with it; acceleration: the limit of every joint in rad/s^2."""
    assert fault.tick is not None
    with mock.patch.object(io_process, "now_ns") as clock:
        world = World(fault.tick, lambda now: setattr(clock, "side_effect", now), schedule, acceleration)
        try:
            rows = world.run()
            seen = judge(rows, BEGIN, SPEC, {"torn_reads": world.loop.torn_reads})
        finally:
            world.close()
    found = complaints(seen, fault.hold_within, fault.cause, fault.counted, fault.outcome)
    if acceleration is not None and (jolts := too_sudden(rows["command"], acceleration / SPEC.control_hz**2)):
        found.append(f"{jolts} commands above the acceleration limit")
    return seen, found


def in_real_time(fault: Fault, folder: Path) -> tuple[Seen, list[str]]:
    """The same with real processes; the log, the robot's diary and the row's own check must all agree."""
    assert fault.run is not None
    evidence = rig.play(fault.run, folder)
    planned = round(fault.run.seconds * SPEC.control_hz)
    ended = evidence.report is None or int(evidence.rows["tick"][-1]) < planned - EARLY
    seen = judge(evidence.rows, evidence.begin, SPEC, counted_of(evidence.report or {}), ended=ended)
    within = None if fault.hold_within is None else fault.hold_within + RUN_SLACK
    found = complaints(seen, within, fault.cause, fault.counted, fault.outcome)
    return seen, found + at_the_robot(evidence.diary) + fault.check(evidence)


def counted_of(report: Mapping[str, Any]) -> dict[str, int]:
    """Every counter of a report, those by name as "what:name"."""
    found = {name: value for name, value in report.items() if type(value) is int}
    for name, part in report.items():
        if isinstance(part, Mapping):
            found.update({f"{name}:{key}": value for key, value in part.items() if type(value) is int})
    return found


def at_the_robot(diary: np.ndarray) -> list[str]:
    """What is wrong with the commands that reached the robot: not finite, out of range, or faster than its limits."""
    commands = diary[diary["kind"] == b"command"]
    if not len(commands):
        return ["no command reached the robot"]
    # the driver takes the newest command: between two of its looks io may have sent several
    ticks = np.maximum(1.0, np.ceil(np.diff(commands["t_ns"]) / rig.PERIOD_NS) + 1)
    too_far, worst = steps_too_far(commands["joints"], ticks, SPEC)
    found = [f"{too_far} commands at the robot moved too far, the worst {worst:.2f} times the limit"] if too_far else []
    outside = out_of_range(commands["joints"], SPEC)
    return found + ([f"{outside} commands at the robot out of range or not finite"] if outside else [])

"""A fault in a run with real processes: start a bridge, do something to it, and collect log, report and diary.

Times are those of two noisy cores: what is exact to the tick is tested in simulated time (world.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bridge import BridgeRun, wait_until_gone
from edgewam.robot_bridge.run import RunSettings
from tests.robot_bridge.faults import robot

PERIOD_NS = 20_000_000
ENDLESS = 1_000_000  # ticks of an episode: the robot is never put back


@dataclass
class Scene:
    """What an incident can act on: the process ids by role ("supervisor" too) and a folder of its own."""

    folder: Path
    pids: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    helpers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def switch(self) -> Path:
        """While this file exists the robot's parts and the policy do what `Incident.fault` says."""
        return self.folder / "switch"


def switch_on(scene: Scene) -> None:
    """Let the fault begin."""
    scene.switch.touch()


def switch_off(scene: Scene) -> None:
    """Let the fault end."""
    scene.switch.unlink(missing_ok=True)


def send(role: str, what: signal.Signals) -> Callable[[Scene], None]:
    """Send a signal to one process; who has gone already cannot be hurt."""

    def act(scene: Scene) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(scene.pids[role], what)

    return act


def nothing(scene: Scene) -> None:
    """Nothing."""


@dataclass(frozen=True)
class Incident:
    """What happens in a run, in seconds from its first control tick.

    fault: what robot.py does while the switch is on.  begin, end: called at begin_s and end_s.  before: called before the start.
    settings: of the run, where they differ from the defaults.  environment: of all processes.  "{folder}" in a text of either is
    the run's own folder.  is_real: the robot is no simulator, and has cameras (real_robot.py).
    """

    fault: str = ""
    begin: Callable[[Scene], None] = switch_on
    end: Callable[[Scene], None] = switch_off
    begin_s: float = 1.3
    end_s: float = 2.2
    seconds: float = 5.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    before: Callable[[Scene], None] = nothing
    is_real: bool = False


@dataclass(frozen=True)
class Evidence:
    """Of one run.  rows: its log, one per tick.  begin: tick at which the fault began.  report: None when the supervisor died."""

    rows: np.ndarray
    begin: int
    report: dict[str, Any] | None
    diary: np.ndarray
    begin_ns: int
    end_ns: int
    scene: Scene


def _placed(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return {name: value.replace("{folder}", str(folder)) if isinstance(value, str) else value for name, value in values.items()}


def play(incident: Incident, folder: Path) -> Evidence:
    """Run the bridge with an incident; every process it started has ended when this returns."""
    scene = Scene(folder)
    incident.before(scene)
    texts = {"EDGEWAM_TEST_FAULT": incident.fault, "EDGEWAM_TEST_FOLDER": str(folder), **incident.environment}
    run = BridgeRun(
        folder,
        f"{robot.MODULE}.{'split_policy' if incident.settings.get('planner') == 'process' else 'policy'}",
        {},
        RunSettings(**{"episode_ticks": ENDLESS, **_placed(incident.settings, folder)}),
        environment=_placed(texts, folder),
        robot=f"{robot.PACKAGE}.real_robot" if incident.is_real else robot.MODULE,
        seconds=incident.seconds,
        name=folder.name[-40:],
        arm=True,
    )
    scene.pids.update(run.pids)
    start = time.monotonic() + 0.1
    times = [0, 0]

    def at(which: int, action: Callable[[Scene], None]) -> None:
        times[which] = time.monotonic_ns()
        action(scene)

    timers = [
        threading.Timer(max(0.0, start + when - time.monotonic()), at, (which, action))
        for which, (when, action) in enumerate(((incident.begin_s, incident.begin), (incident.end_s, incident.end)))
    ]
    for timer in timers:
        timer.start()
    try:
        report = run.wait()
    finally:
        for timer in timers:
            timer.join()
        run.close()
    wait_until_gone(scene.pids)
    rows = run.rows()
    epoch_ns = int(rows["deadline_ns"][0]) - int(rows["tick"][0]) * PERIOD_NS
    begin = -(-(times[0] - epoch_ns) // PERIOD_NS)
    diary = np.fromfile(folder / "diary", robot.DIARY)
    return Evidence(rows, begin, report, diary, times[0], times[1], scene)

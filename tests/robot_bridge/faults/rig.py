"""A fault in a run with real processes: start a bridge, do something to it, and collect its log, its report and the robot's diary.

Times are those of two noisy cores: what is exact to the tick is tested in simulated time (world.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgewam.robot_bridge.processes import child_environment
from edgewam.robot_bridge.run import RunSettings
from edgewam.robot_bridge.wires import log_layout
from tests.robot_bridge.faults import robot

ROOT = Path(__file__).parents[3]
PERIOD_NS = 20_000_000
END_TIMEOUT_S = 60.0  # from the end of a run to the end of its processes, on a machine that is busy with other tests


@dataclass
class Scene:
    """What an incident can act on: the process ids by role ("supervisor" too) and a folder of its own."""

    folder: Path
    pids: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

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

    fault: what robot.py does while the switch is on.  begin, end: called at begin_s and end_s.  environment: of all processes.
    settings: of the run, where they differ from the defaults.  before: called before the run is started.
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
    exit_code: int


def play(incident: Incident, folder: Path) -> Evidence:
    """Run the bridge with an incident; every process it started has ended when this returns."""
    scene = Scene(folder)
    incident.before(scene)
    request = {
        "rows": str(folder / "rows"),
        "settings": asdict(RunSettings(**incident.settings)),
        "policy_factory": f"{robot.MODULE}.policy",
        "policy_args": {},
        "robot": robot.MODULE,
        "seconds": incident.seconds,
    }
    environment = {
        "EDGEWAM_TEST_FAULT": incident.fault,
        "EDGEWAM_TEST_SWITCH": str(scene.switch),
        "EDGEWAM_TEST_DIARY": str(folder / "diary"),
        **incident.environment,
    }
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.robot_bridge.faults.parent"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=child_environment(environment),
    )  # fmt: skip
    assert parent.stdin is not None and parent.stdout is not None
    parent.stdin.write(json.dumps(request) + "\n")
    parent.stdin.flush()
    started = json.loads(parent.stdout.readline() or "{}")
    assert "io" in started, f"the bridge did not start: {started} {parent.communicate()[1]}"
    scene.pids.update(started, supervisor=parent.pid)
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
        output, errors = parent.communicate(timeout=incident.seconds + END_TIMEOUT_S)
    finally:
        for timer in timers:
            timer.join()
        parent.kill()
        parent.wait()
    last = output.strip().rpartition("\n")[2]
    report = json.loads(last) if last else None
    assert report is None or "error" not in report, f"{report} {errors}"
    wait_for_the_end(started)
    rows = np.fromfile(folder / "rows", log_layout(robot.NUM_JOINTS))
    _, first = np.unique(rows["tick"], return_index=True)
    rows = rows[first]
    epoch_ns = int(rows["deadline_ns"][0]) - int(rows["tick"][0]) * PERIOD_NS
    begin = -(-(times[0] - epoch_ns) // PERIOD_NS)
    diary = np.fromfile(folder / "diary", robot.DIARY)
    return Evidence(rows, begin, report, diary, times[0], times[1], scene, parent.returncode)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_the_end(pids: Mapping[str, int]) -> None:
    """All processes of a run leave by themselves, whoever died."""
    limit = time.monotonic() + END_TIMEOUT_S
    while left := {role: pid for role, pid in pids.items() if is_alive(pid)}:
        assert time.monotonic() < limit, f"still there: {left}"
        time.sleep(0.05)

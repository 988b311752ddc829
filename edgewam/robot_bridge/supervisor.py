"""The parent of the bridge's processes: starts them, watches them, ends them, and puts the report together.

io, driver and camera are indispensable: without them the run ends.  The engine may die: io holds the arm, a new engine is
started and the run goes on.  Whatever ends a run, every child is collected.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.clock import NS, now_ns
from edgewam.robot_bridge.modes import Mode
from edgewam.robot_bridge.processes import Child
from edgewam.robot_bridge.report import RunReport, count, latched
from edgewam.robot_bridge.robot import RobotSpec
from edgewam.robot_bridge.shm_record import Value
from edgewam.robot_bridge.wires import Wires

MAX_ENGINE_RESTARTS = 3
_WATCH_S = 0.02


@dataclass(frozen=True)
class Progress:
    """A glance at a run: control tick of how many, mode, episodes that ended."""

    tick: int
    num_ticks: int
    mode: str
    episodes: int


class Supervisor:
    """One run: `start`, `watch`, `stop`, `report`; `close` in any case."""

    def __init__(self, config: Mapping[str, Any], wires: Wires) -> None:
        self._config, self._wires = config, wires
        self._roles: list[str] = config["roles"]
        self._control = wires["control"].blank()
        self._control["is_armed"] = 1
        self._children: dict[str, Child] = {}
        self._faults: list[str] = []
        self._restarts = 0
        self._is_complete = False
        self._rows: list[Value] = []
        self._drained = 0

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by role."""
        return {role: child.pid for role, child in self._children.items()}

    def _spawn(self, role: str) -> None:
        config = {
            **self._config,
            "role": role,
            "wires": self._wires.describe(),
            "parent_pid": os.getpid(),
            "generation": self._restarts,
        }
        # the software renderer's own threads would take the cores from the engine without drawing small images sooner
        environment = {"LP_NUM_THREADS": "1"} if role == "camera" else {}
        self._children[role] = Child(config, self._wires.fds.values(), environment)

    def _is_ready(self, role: str) -> bool:
        status = self._wires[f"status_{role}"].read()
        return status is not None and bool(status[1]["is_ready"])

    def start(self) -> None:
        """Start everyone, wait until all are ready, and set the epoch."""
        for role in self._roles:
            self._spawn(role)
        limit = time.monotonic() + self._config["start_timeout_s"]
        while not all(self._is_ready(role) for role in self._roles):
            for child in self._children.values():
                if child.exit_code is not None:
                    raise EdgewamError(child.failure())
            if time.monotonic() > limit:
                waiting = ", ".join(role for role in self._roles if not self._is_ready(role))
                raise EdgewamError(
                    f"Not ready after {self._config['start_timeout_s']:.0f} s: {waiting}. Is the machine overloaded?"
                )
            time.sleep(_WATCH_S)
        self._control["epoch_ns"] = now_ns() + NS // 10
        self._wires["control"].write(self._control)

    def watch(self, on_progress: Callable[[Progress], None] | None) -> None:
        """Until io is done or the run cannot go on."""
        io, next_progress = self._children["io"], 0.0
        while io.exit_code is None:
            io.wait(_WATCH_S)
            self._drain()
            for role in self._roles[1:]:
                child = self._children[role]
                if child.exit_code is None or io.exit_code is not None:
                    continue
                self._faults.append(child.failure())
                if role != "engine" or self._restarts >= MAX_ENGINE_RESTARTS:
                    return
                self._restarts += 1
                child.close()
                self._spawn("engine")
            if on_progress is not None and time.monotonic() >= next_progress:
                next_progress = time.monotonic() + 0.2
                on_progress(self._progress())
        self._is_complete = io.exit_code == 0
        if not self._is_complete:
            self._faults.append(io.failure())

    def _drain(self) -> None:
        status = self._wires["status_io"].read()
        end = int(status[1]["count"]) if status else 0
        rows, _ = self._wires.log.read(self._drained, end)
        self._rows.append(rows)
        self._drained = end

    def _progress(self) -> Progress:
        io, driver = self._wires["status_io"].read(), self._wires["status_driver"].read()
        tick, mode = (int(io[1]["tick"]), int(io[1]["mode"])) if io else (0, 0)
        return Progress(tick, int(self._config["num_ticks"]), Mode(mode).name, int(driver[1]["count"]) if driver else 0)

    def stop(self) -> None:
        """io brakes and leaves first, then the others; who does not leave is killed."""
        self._control["quit"] = 1
        self._wires["control"].write(self._control)
        for child in self._children.values():
            child.end(3.0)

    def report(self, spec: RobotSpec, robot: str) -> RunReport:
        """Counters from the log, and what the children said about themselves."""
        self._drain()
        log = np.concatenate([self._wires.log.read(0, 0)[0], *self._rows])
        num_ticks = int(self._config["num_ticks"])
        lasted = num_ticks if self._is_complete else (int(log["tick"][-1]) + 1 if len(log) else 0)
        if self._is_complete and (latch := latched(log)) is not None:
            self._faults.append(latch)
        results = {role: self._children[role].results() for role in self._roles}
        io, driver, camera = (results[role] for role in ("io", "driver", "camera"))
        episodes = driver.get("episodes", [])
        return replace(
            count(log, lasted, self._config, spec.joint_names),
            robot=robot,
            robot_options=dict(self._config["robot_options"]),
            is_complete=self._is_complete and not latched(log),
            faults=self._faults,
            engine_restarts=self._restarts,
            episodes=episodes,
            num_strict_successes=sum(bool(episode["strict_success"]) for episode in episodes),
            real_time={role: result.get("real_time", {}) for role, result in results.items()},
            frames=camera.get("frames", 0),
            skipped_frames=camera.get("skipped_frames", 0),
            torn_reads=io.get("torn_reads", 0),
            driver_caught_up_ticks=driver.get("caught_up_ticks", 0),
        )

    def close(self) -> None:
        """After an error or Ctrl-C: the arm is braked, everyone is collected."""
        try:
            if any(child.exit_code is None for child in self._children.values()):
                self.stop()
        finally:
            for child in self._children.values():
                child.close()

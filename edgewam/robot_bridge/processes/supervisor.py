"""The parent of the bridge's processes: has them started, watched and ended (`children.py`), and puts the report together.

Without io or the driver the run ends; every other child that dies or hangs is started again, within a budget, while io holds
the arm.  Somebody at this machine may talk to the run meanwhile.  Whatever ends a run, every child is collected.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from edgewam.robot_bridge.clock import NS, now_ns
from edgewam.robot_bridge.control.modes import Cause, Mode
from edgewam.robot_bridge.counting.report import RunReport
from edgewam.robot_bridge.counting.tally import Tally
from edgewam.robot_bridge.processes.children import WATCH_S, Children
from edgewam.robot_bridge.processes.local_control import ControlServer
from edgewam.robot_bridge.processes.memory import MemoryWatch
from edgewam.robot_bridge.records.shm_record import Value
from edgewam.robot_bridge.records.wires import Wires
from edgewam.robot_bridge.robot import RobotSpec

_DRAIN_S, _MEMORY_S, _PROGRESS_S = 0.2, 3.0, 0.2  # how often the log, /proc and the user are served
_ELSEWHERE = ("episodes", "real_time")  # of what a child says of itself, what the report has in a place of its own


@dataclass(frozen=True)
class Progress:
    """A glance at a run: control tick of how many, mode and its cause, episodes that ended, port of the live page if any."""

    tick: int
    num_ticks: int
    mode: str
    episodes: int
    cause: str = "none"
    is_armed: bool = True
    view_port: int | None = None


class _Duty:
    """Something to be done once per `period_s`."""

    def __init__(self, period_s: float, action: Callable[[], None]) -> None:
        self._period_s, self._action, self._due_s = period_s, action, 0.0

    def do_if_due(self) -> None:
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + self._period_s
            self._action()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM do nothing: pressed again and again they would kill the driver before it has stopped the robot."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda number, frame: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Supervisor:
    """One run: `start`, `watch`, `stop`, `report`; `close` in any case."""

    def __init__(
        self,
        config: Mapping[str, Any],
        wires: Wires,
        spec: RobotSpec,
        server: ControlServer,
        on_rows: Callable[[Value], None] = lambda rows: None,
    ) -> None:
        self._config, self._wires, self._spec, self._server = config, wires, spec, server
        self._on_rows = on_rows
        self._control = wires["control"].blank()
        self._control["is_armed"] = config["arm"]
        self._children = Children(config, wires)
        self._memory = MemoryWatch()
        self._tally = Tally(config, spec.joint_names)
        self._drained = 0
        self._latch: str | None = None
        self._is_complete = self._is_interrupted = False

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by role."""
        return self._children.pids

    def start(self) -> None:
        """Start everyone, wait until all are ready, and set the epoch; EdgewamError when they cannot."""
        self._wires["control"].write(self._control)
        self._children.start(lambda: self._server.poll(self._answer))
        self._control["epoch_ns"] = epoch_ns = now_ns() + NS // 10
        self._children.watch_from(epoch_ns)
        self._wires["control"].write(self._control)

    def watch(self, on_progress: Callable[[Progress], None] | None) -> None:
        """Until io is done or the run cannot go on."""
        io = self._children["io"]
        duties = [_Duty(_DRAIN_S, self._drain), _Duty(_MEMORY_S, self._sample_memory)]
        if on_progress is not None:
            duties.append(_Duty(_PROGRESS_S, lambda: on_progress(self._progress())))
        while io.exit_code is None:
            io.wait(WATCH_S)
            self._server.poll(self._answer)
            if not self._children.keep_alive():
                return
            for duty in duties:
                duty.do_if_due()
        self._is_complete = io.exit_code == 0
        if not self._is_complete:
            self._children.fault(io.failure())

    def _drain(self) -> None:
        status = self._children.status("io")
        if status is None:
            return
        end = int(status["count"])
        rows, lost = self._wires.log.read(self._drained, end)
        self._tally.add(rows, lost)
        self._on_rows(rows)
        self._drained = end

    def _sample_memory(self) -> None:
        now, started_ns = now_ns(), self._children.started_ns
        for role, pid in {**self.pids, "supervisor": os.getpid()}.items():
            self._memory.sample(role, pid, (now - started_ns.get(role, started_ns["io"])) / NS)

    def _progress(self) -> Progress:
        io, driver = self._children.status("io"), self._children.status("driver")
        view = self._children.status("view") if "view" in self._config["roles"] else None
        tick, mode, cause = (int(io["tick"]), int(io["mode"]), int(io["cause"])) if io is not None else (0, 0, 0)
        return Progress(
            tick=tick,
            num_ticks=self._config["num_ticks"],
            mode=Mode(mode).name,
            episodes=0 if driver is None else int(driver["count"]),
            cause=Cause(cause).name.lower(),
            is_armed=bool(self._control["is_armed"]),
            view_port=None if view is None else int(view["tick"]),
        )

    def _answer(self, verb: str) -> dict[str, Any]:
        """Carry out what somebody at this machine asks for, and say how things stood before it took effect."""
        control = self._control
        match verb:
            case "arm" | "disarm":
                control["is_armed"] = verb == "arm"
            case "stop":
                control["stops"] += 1
            case "reset":
                control["resets"] += 1
            case "estop":
                control["estop"] = 1
        if verb != "status":
            self._wires["control"].write(control)
        progress = self._progress()
        return {
            "run": self._server.name,
            "robot": self._spec.name,
            "mode": progress.mode,
            "cause": progress.cause,
            "is_armed": progress.is_armed,
            "tick": progress.tick,
            "episodes": progress.episodes,
            "restarts": self._children.restarts,
            "pids": self.pids,
        }

    def stop(self) -> None:
        """io brakes and leaves first, then the others; who does not leave is killed.  Takes seconds at most."""
        with _undisturbed():
            if not self._control["quit"]:
                self._drain()
                self._latch = self._tally.latch  # braking because of `quit` is no latched STOP
            self._control["quit"] = 1
            self._wires["control"].write(self._control)
            self._children.end()

    def interrupt(self, is_expected: bool) -> None:
        """The user has ended the run, as the only way (`is_expected`) or before its time; then brake as in `stop`."""
        self._is_complete, self._is_interrupted = is_expected, True
        if not is_expected:
            self._children.fault("The run was interrupted.")
        self.stop()

    def report(self) -> RunReport:
        """Counters from the log, and what the children said about themselves."""
        self._drain()
        has_ended = self._is_complete and not self._is_interrupted
        if self._is_complete and self._latch is not None:
            self._children.fault(self._latch)
        results = {role: self._children[role].results() for role in self._config["roles"]}
        if lost := results.get("recorder", {}).get("fault"):
            self._children.fault(f"The recording ended before the run: {lost}.")
        io, driver, camera = (results[role] for role in ("io", "driver", "camera"))
        status, silent = self._children.status("io"), io.get("silent_ticks", 0)
        last_tick = max(self._tally.last_tick, int(status["tick"]) if status is not None and silent else -1)
        return replace(
            self._tally.report(int(self._config["num_ticks"]) if has_ended else last_tick + 1, silent),
            robot=self._config["robot"],
            robot_options=dict(self._config["robot_options"]),
            is_complete=self._is_complete and self._latch is None,
            faults=self._children.faults,
            engine_restarts=self._children.restarts.get("engine", 0),
            restarts=self._children.restarts,
            episodes=driver.get("episodes", []),
            num_strict_successes=driver.get("num_strict_successes", 0),
            real_time={role: result.get("real_time", {}) for role, result in results.items()},
            memory_mb=self._memory.report(),
            frames=camera.get("frames", 0),
            skipped_frames=camera.get("skipped_frames", 0),
            lost_images=camera.get("lost_images", {}),
            torn_reads=io.get("torn_reads", 0),
            driver_caught_up_ticks=driver.get("caught_up_ticks", 0),
            robot_errors=driver.get("robot_errors", 0),
            processes={role: {k: v for k, v in found.items() if k not in _ELSEWHERE} for role, found in results.items()},
        )

    def close(self) -> None:
        """After an error: the arm is braked, everyone is collected."""
        try:
            if self._children.are_left:
                self.stop()
        finally:
            self._children.close()

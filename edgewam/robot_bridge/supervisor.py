"""The parent of the bridge's processes: starts them, watches them, starts them again, ends them, and puts the report together.

Without io or the driver the run ends; every other child that dies or hangs is started again, within a budget, while io holds
the arm.  Somebody at this machine may talk to the run meanwhile.  Whatever ends a run, every child is collected.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.clock import NS, now_ns
from edgewam.robot_bridge.local_control import ControlServer
from edgewam.robot_bridge.memory import MemoryWatch
from edgewam.robot_bridge.modes import Cause, Mode
from edgewam.robot_bridge.processes import Child
from edgewam.robot_bridge.report import RunReport
from edgewam.robot_bridge.robot import RobotSpec
from edgewam.robot_bridge.tally import Tally
from edgewam.robot_bridge.watchdog import INDISPENSABLE, RestartBudget, is_hanging, silence_limit_s
from edgewam.robot_bridge.wires import Wires

_WATCH_S = 0.02
_DRAIN_S, _MEMORY_S, _PROGRESS_S = 0.2, 3.0, 0.2  # how often the log, /proc and the user are served
_MAX_FAULTS = 100  # a run of days may restart a camera every minute
_ELSEWHERE = ("episodes", "real_time")  # of what a child says of itself, what the report has in a place of its own
_ENVIRONMENT = {
    # buffers and stack of a thread that has nothing to compute: 40 MB once memory is locked
    "io": {"OPENBLAS_NUM_THREADS": "1"},
    "driver": {"OPENBLAS_NUM_THREADS": "1"},
    # the software renderer's own threads would take the cores from the engine without drawing small images sooner
    "camera": {"LP_NUM_THREADS": "1"},
}
_LEAVE_S = 3.0  # for a child that was asked to leave


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


class Supervisor:
    """One run: `start`, `watch`, `stop`, `report`; `close` in any case."""

    def __init__(self, config: Mapping[str, Any], wires: Wires, spec: RobotSpec, server: ControlServer) -> None:
        self._config, self._wires, self._spec, self._server = config, wires, spec, server
        self._roles: list[str] = config["roles"]
        self._control = wires["control"].blank()
        self._control["is_armed"] = config["arm"]
        self._children: dict[str, Child] = {}
        self._started_ns: dict[str, int] = {}
        self._faults: list[str] = []
        self._budget = RestartBudget(int(config["max_restarts"]), float(config["restart_window_s"]))
        self._memory = MemoryWatch()
        self._tally = Tally(config, spec.joint_names)
        self._drained = 0
        self._latch: str | None = None
        self._watching_since_ns = 0  # who is ready early waits in silence for the others
        self._is_complete = self._is_interrupted = False

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
            "generation": self._budget.counts[role],
        }
        status = self._wires[f"status_{role}"]
        status.write(status.blank())  # what a predecessor said of itself; it is dead, so there is one writer
        self._started_ns[role] = now_ns()
        self._children[role] = Child(config, self._wires.fds.values(), _ENVIRONMENT.get(role, {}))

    def _status(self, role: str) -> Any:
        found = self._wires[f"status_{role}"].read()
        return None if found is None else found[1]

    def _is_ready(self, role: str) -> bool:
        status = self._status(role)
        return status is not None and bool(status["is_ready"])

    def start(self) -> None:
        """Start everyone, wait until all are ready, and set the epoch."""
        self._wires["control"].write(self._control)
        for role in self._roles:
            self._spawn(role)
        limit = time.monotonic() + self._config["start_timeout_s"]
        while not all(self._is_ready(role) for role in self._roles):
            self._server.poll(self._answer)
            for child in self._children.values():
                if child.exit_code is not None:
                    raise EdgewamError(child.failure())
            if time.monotonic() > limit:
                waiting = ", ".join(role for role in self._roles if not self._is_ready(role))
                raise EdgewamError(
                    f"Not ready after {self._config['start_timeout_s']:.0f} s: {waiting}. Is the machine overloaded?"
                )
            time.sleep(_WATCH_S)
        self._control["epoch_ns"] = self._watching_since_ns = now_ns() + NS // 10
        self._wires["control"].write(self._control)

    def watch(self, on_progress: Callable[[Progress], None] | None) -> None:
        """Until io is done or the run cannot go on."""
        io = self._children["io"]
        duties = [_Duty(_DRAIN_S, self._drain), _Duty(_MEMORY_S, self._sample_memory)]
        if on_progress is not None:
            duties.append(_Duty(_PROGRESS_S, lambda: on_progress(self._progress())))
        while io.exit_code is None:
            io.wait(_WATCH_S)
            self._server.poll(self._answer)
            if not self._keep_alive():
                return
            for duty in duties:
                duty.do_if_due()
        self._is_complete = io.exit_code == 0
        if not self._is_complete:
            self._fault(io.failure())

    def _keep_alive(self) -> bool:
        """Kill who hangs, start again who has died; False when the run cannot go on."""
        for role in self._roles:
            child = self._children[role]
            if child.exit_code is None:
                if not self._hangs(role):
                    continue
                child.kill()
                failure = f"The {role} process gave no sign of life and was killed."
            elif self._children["io"].exit_code is not None:
                continue  # the run is over
            else:
                failure = child.failure()
            self._fault(failure)
            if not self._budget.spend(role, time.monotonic()):
                if role not in INDISPENSABLE:
                    self._fault(f"The {role} process failed too often within {self._config['restart_window_s']:.0f} s.")
                return False
            child.close()
            self._spawn(role)
        return True

    def _hangs(self, role: str) -> bool:
        status = self._status(role)
        if status is None:  # being written; the next look will see it
            return False
        silence_s = silence_limit_s(role, float(self._config["heartbeat_timeout_s"]))
        return is_hanging(
            bool(status["is_ready"]),
            max(int(status["heartbeat_ns"]), self._watching_since_ns),
            self._started_ns[role],
            now_ns(),
            silence_s,
            float(self._config["start_timeout_s"]),
        )

    def _fault(self, text: str) -> None:
        if len(self._faults) < _MAX_FAULTS:
            self._faults.append(text)

    def _drain(self) -> None:
        status = self._status("io")
        if status is None:
            return
        end = int(status["count"])
        self._tally.add(*self._wires.log.read(self._drained, end))
        self._drained = end

    def _sample_memory(self) -> None:
        now = now_ns()
        for role, pid in {**self.pids, "supervisor": os.getpid()}.items():
            self._memory.sample(role, pid, (now - self._started_ns.get(role, self._started_ns["io"])) / NS)

    def _progress(self) -> Progress:
        io, driver = self._status("io"), self._status("driver")
        view = self._status("view") if "view" in self._roles else None
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
            "restarts": dict(self._budget.counts),
            "pids": self.pids,
        }

    def stop(self) -> None:
        """io brakes and leaves first, then the others; who does not leave is killed."""
        if not self._control["quit"]:
            self._drain()
            self._latch = self._tally.latch  # braking because of `quit` is no latched STOP
        self._control["quit"] = 1
        self._wires["control"].write(self._control)
        for child in self._children.values():
            child.end(_LEAVE_S)

    def interrupt(self, is_expected: bool) -> None:
        """The user has ended the run, as the only way (`is_expected`) or before its time; then brake as in `stop`."""
        self._is_complete, self._is_interrupted = is_expected, True
        if not is_expected:
            self._fault("The run was interrupted.")
        self.stop()

    def report(self) -> RunReport:
        """Counters from the log, and what the children said about themselves."""
        self._drain()
        has_ended = self._is_complete and not self._is_interrupted
        lasted = int(self._config["num_ticks"]) if has_ended else self._tally.last_tick + 1
        if self._is_complete and self._latch is not None:
            self._fault(self._latch)
        results = {role: self._children[role].results() for role in self._roles}
        io, driver, camera = (results[role] for role in ("io", "driver", "camera"))
        return replace(
            self._tally.report(lasted),
            robot=self._config["robot"],
            robot_options=dict(self._config["robot_options"]),
            is_complete=self._is_complete and self._latch is None,
            faults=self._faults,
            engine_restarts=self._budget.counts["engine"],
            restarts=dict(self._budget.counts),
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
            if any(child.exit_code is None for child in self._children.values()):
                self.stop()
        finally:
            for child in self._children.values():
                child.close()

"""Entry point of every child process of the bridge: `python -m edgewam.robot_bridge.processes.child`, told what to be on stdin.

A child reads one JSON line of configuration, runs its role and prints one JSON line: results or an error.  It leaves by
itself when the parent asks it to or is gone.  Its standard output is for results only: prints of libraries go to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from typing import Any, TextIO

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.clock import now_ns
from edgewam.robot_bridge.records.shm_record import Value
from edgewam.robot_bridge.records.wires import Wires

ROLE_MODULES = {
    "io": "edgewam.robot_bridge.processes.io_process",
    "driver": "edgewam.robot_bridge.processes.driver_process",
    "camera": "edgewam.robot_bridge.processes.camera_process",
    "engine": "edgewam.robot_bridge.processes.engine_process",
    "planner": "edgewam.robot_bridge.processes.planner_process",
    "recorder": "edgewam.robot_bridge.processes.recorder_process",
    "view": "edgewam.robot_bridge.processes.view_process",
}
HEARTBEAT_NS = 20_000_000  # fifty times within the shortest silence that counts as one

# io locks all its memory: it maps nothing that it does not read
RECORDS = {"io": ("control", "requests", "state", "chunk", "cameras", "command", "status_engine", "status_io")}


class Link:
    """A child's side of the bridge: the records, what the parent wants, and the child's own status."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.wires = Wires.attach(config["wires"], RECORDS.get(config["role"]))
        self._parent = int(config["parent_pid"])
        self._status_record = self.wires[f"status_{config['role']}"]
        self._status = self._status_record.blank()
        self._reported: tuple[int, ...] = ()
        self._control: Value = self.wires["control"].blank()
        self._control_version = 0

    def _read_control(self) -> Value:
        newer = self.wires["control"].read(self._control_version)
        if newer is not None:
            self._control_version, self._control = newer
        return self._control

    @property
    def control(self) -> Value:
        """The newest whole control record: what the parent wants."""
        return self._read_control()

    @property
    def is_orphan(self) -> bool:
        """The parent is gone."""
        return os.getppid() != self._parent

    @property
    def is_quitting(self) -> bool:
        """The parent asked to stop."""
        return bool(self._read_control()["quit"])

    @property
    def is_stopping(self) -> bool:
        """The parent asked to stop, or is gone."""
        return self.is_quitting or self.is_orphan

    @property
    def epoch_ns(self) -> int:
        """Time of control tick 0, or 0 while the parent still waits for everyone to be ready."""
        return int(self._read_control()["epoch_ns"])

    def report(
        self,
        *,
        is_ready: bool = True,
        count: int = 0,
        tick: int = 0,
        mode: int = 0,
        cause: int = 0,
        applied_id: int = -1,
        delay_ticks: int = 0,
        lost: int = 0,
    ) -> None:
        """Publish this child's status with a fresh heartbeat; see `wires.layouts`.

        A loop that polls may call this as often as it likes: without news the heartbeat is enough once in a while.
        """
        news = (is_ready, count, tick, mode, cause, applied_id, delay_ticks, lost)
        if news == self._reported and now_ns() - int(self._status["heartbeat_ns"]) < HEARTBEAT_NS:
            return
        self._reported = news
        status = self._status
        status["is_ready"], status["heartbeat_ns"] = is_ready, now_ns()
        status["count"], status["tick"], status["mode"], status["cause"] = count, tick, mode, cause
        status["applied_id"], status["delay_ticks"], status["lost"] = applied_id, delay_ticks, lost
        self._status_record.write(status)


def private_stdout() -> TextIO:
    """The real standard output for results; whatever else prints goes to standard error from now on."""
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return stream


def explain(error: Exception) -> str:
    """An error that nobody foresaw, in one line with its place; the whole traceback goes to standard error."""
    traceback.print_exception(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}:{place.lineno})"


def main() -> int:
    """Run one role; exit code 0 done, 1 an error that is the user's to act on, 2 any other (traceback on stderr)."""
    # Ctrl-C and the end of a service or session reach the parent as well, who stops us in order: io brakes, then the driver
    # tells the robot to stop.  Handlers and not SIG_IGN: programs that a robot's library starts do not inherit them.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)
    results = private_stdout()
    config = json.loads(sys.stdin.readline())
    os.environ.update(config.get("environment", {}))
    try:
        outcome = importlib.import_module(ROLE_MODULES[config["role"]]).run(config, Link(config))
    except EdgewamError as error:
        print(json.dumps({"error": str(error)}), file=results)
        return 1
    except Exception as error:
        print(json.dumps({"error": explain(error)}), file=results)
        return 2
    print(json.dumps(outcome, allow_nan=False), file=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())

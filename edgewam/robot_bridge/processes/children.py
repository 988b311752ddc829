"""The child processes of one run: started together, found hanging, started again within a budget, collected whatever happens."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.clock import NS, now_ns
from edgewam.robot_bridge.processes.spawn import Child
from edgewam.robot_bridge.processes.watchdog import DISPENSABLE, INDISPENSABLE, RestartBudget, is_hanging, silence_limit_s
from edgewam.robot_bridge.records.wires import Wires

WATCH_S = 0.02  # how often the supervisor looks around
_ASLEEP_S = 1.0  # a supervisor that did not look around for so long was stopped, perhaps with all the others
_MAX_FAULTS = 100  # a run of days may restart a camera every minute
_LEAVE_S = 3.0  # for a child that was asked to leave
_ENVIRONMENT = {
    # buffers and stack of a thread that has nothing to compute: 40 MB once memory is locked
    "io": {"OPENBLAS_NUM_THREADS": "1"},
    "driver": {"OPENBLAS_NUM_THREADS": "1"},
    # the software renderer's own threads would take the cores from the engine without drawing small images sooner
    "camera": {"LP_NUM_THREADS": "1"},
}


class Children:
    """The children of `config["roles"]`.  `faults` says what went wrong with them, in their own words."""

    def __init__(self, config: Mapping[str, Any], wires: Wires) -> None:
        self._config, self._wires = config, wires
        self._roles: list[str] = config["roles"]
        self._children: dict[str, Child] = {}
        self.started_ns: dict[str, int] = {}
        self._budget = RestartBudget(int(config["max_restarts"]), float(config["restart_window_s"]))
        self._watching_since_ns = self._looked_ns = 0
        self._given_up: set[str] = set()
        self.faults: list[str] = []

    def __getitem__(self, role: str) -> Child:
        return self._children[role]

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by role, of those that run: the number of one that has been collected may be anybody's."""
        return {role: child.pid for role, child in self._children.items() if child.exit_code is None}

    @property
    def restarts(self) -> dict[str, int]:
        """By role, of those that were started again."""
        return dict(self._budget.counts)

    def fault(self, text: str) -> None:
        """Remember what went wrong."""
        if len(self.faults) < _MAX_FAULTS:
            self.faults.append(text)

    def status(self, role: str) -> Any:
        """What a child last published about itself, if anything."""
        found = self._wires[f"status_{role}"].read()
        return None if found is None else found[1]

    def start(self, meanwhile: Callable[[], None]) -> None:
        """Start everyone and wait until all are ready.

        Raises:
            EdgewamError: one ended, in its own words, or they are not ready in time.
        """
        for role in self._roles:
            self._spawn(role)
        limit = time.monotonic() + self._config["start_timeout_s"]
        while not all(self._is_ready(role) for role in self._roles):
            meanwhile()
            for child in self._children.values():
                if child.exit_code is not None:
                    raise EdgewamError(child.failure())
            if time.monotonic() > limit:
                waiting = ", ".join(role for role in self._roles if not self._is_ready(role))
                raise EdgewamError(
                    f"Not ready after {self._config['start_timeout_s']:.0f} s: {waiting}. Is the machine overloaded?"
                )
            time.sleep(WATCH_S)

    def watch_from(self, time_ns: int) -> None:
        """Silence counts from here on: who is ready early waits for the others without a sign of life."""
        self._watching_since_ns = self._looked_ns = time_ns

    def keep_alive(self) -> bool:
        """Kill who hangs, start again who has died; False when the run cannot go on."""
        now = now_ns()
        if now - self._looked_ns > _ASLEEP_S * NS:
            self.watch_from(now)  # nobody is blamed for a silence in which nobody could be heard
        self._looked_ns = now
        for role in self._roles:
            child = self._children[role]
            if role in self._given_up:
                continue
            if child.exit_code is None:
                if not self._hangs(role):
                    continue
                if not child.kill():
                    self.fault(f"The {role} process (pid {child.pid}) hangs inside of the kernel and cannot be ended.")
                    return False
                failure = f"The {role} process gave no sign of life and was killed."
            elif self._children["io"].exit_code is not None:
                continue  # the run is over
            else:
                failure = child.failure()
            self.fault(failure)
            if not self._budget.spend(role, time.monotonic()):
                if role not in INDISPENSABLE:
                    self.fault(f"The {role} process failed too often within {self._config['restart_window_s']:.0f} s.")
                if role not in DISPENSABLE:
                    return False
                self._given_up.add(role)
                continue
            child.close()
            self._spawn(role)
        return True

    def end(self) -> None:
        """They were asked to leave: io first, then the others; who does not is killed."""
        for child in self._children.values():
            child.end(_LEAVE_S)

    @property
    def are_left(self) -> bool:
        """Whether anyone still runs."""
        return any(child.exit_code is None for child in self._children.values())

    def close(self) -> None:
        """Nobody is left, and nothing of what they printed."""
        for child in self._children.values():
            child.close()

    def _spawn(self, role: str) -> None:
        config = {
            **self._config,
            "role": role,
            "wires": self._wires.describe(),
            "parent_pid": os.getpid(),
            "generation": self._budget.counts[role],
        }
        status = self._wires[f"status_{role}"]
        before, blank = status.read(), status.blank()
        if before is not None:
            blank["heartbeat_ns"] = before[1]["heartbeat_ns"]  # silence counts from the predecessor's last sign of life
        status.write(blank)  # the predecessor is dead, so there is one writer
        self.started_ns[role] = now_ns()
        self._children[role] = Child(config, self._wires.fds.values(), _ENVIRONMENT.get(role, {}))

    def _is_ready(self, role: str) -> bool:
        status = self.status(role)
        return status is not None and bool(status["is_ready"])

    def _hangs(self, role: str) -> bool:
        status = self.status(role)
        if status is None:  # being written; the next look will see it
            return False
        silence_s = silence_limit_s(role, float(self._config["heartbeat_timeout_s"]))
        return is_hanging(
            bool(status["is_ready"]),
            max(int(status["heartbeat_ns"]), self._watching_since_ns),
            self.started_ns[role],
            now_ns(),
            silence_s,
            float(self._config["start_timeout_s"]),
        )

"""A real robot behind the bridge: commands are handed on as they come, its joint state is read shortly before each control tick.

There is one endless episode.  A robot that raises is tried again at the next tick, while io holds because the state grows old;
when commands stop coming, or the robot does not take them, it is told to stop.  The robot is never moved by this process itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.clock import DRIVER_PRIORITY, NS, Sweep, become_real_time, now_ns, sleep_until
from edgewam.robot_bridge.processes.child import Link
from edgewam.robot_bridge.processes.inbox import Inbox
from edgewam.robot_bridge.records.shm_record import Value
from edgewam.robot_bridge.robot import Robot

POLL_NS = 500_000  # how long a command may wait for being seen
MAX_ERRORS_S = 0.5  # a robot that does nothing but raise for so long has left


class RobotDriver:
    """Looks, hands commands on, counts what the robot refuses."""

    def __init__(self, config: Mapping[str, Any], link: Link, robot: Robot) -> None:
        self._link, self._robot, self._name = link, robot, config["robot"]
        self._period_ns = round(NS / config["control_hz"])
        self._lead_ns = round(config["driver_lead_s"] * NS)
        self._lease_ns = int(config["lease_ticks"]) * self._period_ns
        self._max_errors = max(1, round(MAX_ERRORS_S * config["control_hz"]))
        self._state = link.wires["state"]
        self._inbox = Inbox(config, link)
        self._tick = 0
        self._skipped = 0
        self._errors, self._last_error = 0, ""
        self._errors_in_row = {"observe": 0, "command": 0, "stop": 0}
        self._target: Any = None  # of the last command handed on
        self._moved_ns: int | None = None  # when the robot took the last command, until it is told to stop
        self._stops = 0

    def run(self) -> dict[str, Any]:
        """Look until the epoch, then look and command once per tick.

        Raises:
            EdgewamError: the robot raised at every look or command for half a second.
        """
        granted, sweep = become_real_time(DRIVER_PRIORITY), Sweep()
        while not (epoch_ns := self._link.epoch_ns):
            if self._link.is_stopping:
                return self._results(granted)
            self._look()
            self._link.report(is_ready=self._errors_in_row["observe"] == 0)
            sleep_until(now_ns() + self._period_ns)
        while not self._inbox.is_time_to_leave:
            deadline_ns = epoch_ns + (self._tick + 1) * self._period_ns - self._lead_ns
            while now_ns() < deadline_ns:
                self._serve_commands()
                sleep_until(min(deadline_ns, now_ns() + POLL_NS))
            # a robot that answers slowly is asked less often, never several times in a row
            due = 1 + (now_ns() - deadline_ns) // self._period_ns
            self._skipped += due - 1
            self._tick += due
            self._serve_commands()
            self._look()
            self._link.report(tick=self._tick)
            sweep.if_due()
        return self._results(granted)

    @property
    def was_moved(self) -> bool:
        """Whether the robot was ever given a command, or may have been; one that was not is left alone to the end."""
        return self._target is not None

    def _serve_commands(self) -> None:
        """Hand the newest command on; without one for the length of the lease, tell the robot to stop, once."""
        value = self._inbox.take()
        if value is not None and self._may_send(value):
            self._target = value["target"]
            if self._try("command", lambda: self._robot.command(value["target"].copy())):
                self._inbox.applied()
                self._moved_ns = now_ns()
        elif self._moved_ns is not None and now_ns() - self._moved_ns > self._lease_ns:
            is_stopped = self._try("stop", self._robot.stop)
            self._moved_ns = None if is_stopped else now_ns() - self._lease_ns + self._period_ns  # again in a tick
            self._stops += is_stopped

    def _may_send(self, value: Value) -> bool:
        """Whether the robot is armed, or was and still has to be braked; a disarmed one may be moved by hand.

        Both sides have to agree: a command that io decided before it saw the arming holds a pose that the arm may have left.
        """
        if not value["is_live"]:
            return False
        is_armed = bool(self._link.control["is_armed"])
        return is_armed or (self._target is not None and bool((value["target"] != self._target).any()))

    def _look(self) -> None:
        """Publish the joint state; a robot that raises publishes nothing, so the last state grows old."""
        self._try("observe", self._publish)

    def _publish(self) -> None:
        state, t_ns = self._state.blank(), now_ns()  # before it looks: never younger than the truth
        joints = self._robot.observe().state
        if joints.shape != state["state"].shape:
            raise EdgewamError(f"its state has shape {list(joints.shape)}, needed: {list(state['state'].shape)}")
        state["tick"] = state["episode_tick"] = self._tick
        state["state"], state["t_ns"] = joints, t_ns
        state["applied_tick"], state["applied_ns"] = self._inbox.applied_tick, self._inbox.applied_ns
        self._state.write(state)

    def _try(self, what: str, action: Callable[[], None]) -> bool:
        """Whether the robot did it; too many exceptions in a row end this process."""
        try:
            action()
        except Exception as error:  # a driver library may raise anything; one bad reading must not drop the arm
            self._errors += 1
            self._errors_in_row[what] += 1
            self._last_error = f"{type(error).__name__}: {error}"
            if self._errors_in_row[what] >= self._max_errors:
                raise EdgewamError(
                    f"Robot '{self._name}' failed to {what} {self._max_errors} times in a row, at last: {self._last_error}"
                ) from error
            return False
        self._errors_in_row[what] = 0
        return True

    def _results(self, granted: dict[str, str]) -> dict[str, Any]:
        return {
            "caught_up_ticks": self._skipped,
            "robot_errors": self._errors,
            "last_robot_error": self._last_error,
            "lease_stops": self._stops,
            "old_commands": self._inbox.refused,
            "real_time": granted,
        }

"""The commands of io as a driver sees them: the newest one, its lease, what has been handed on, and when the driver may leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewam.robot_bridge.clock import NS, now_ns
from edgewam.robot_bridge.processes.child import Link
from edgewam.robot_bridge.records.shm_record import Value

_LONGEST_STAY_S = 1.0  # beyond `orphan_s`, which io needs to brake and hold


class Inbox:
    """The commands of io: the newest one, how long ago one came, and the newest that was handed to the robot."""

    def __init__(self, config: Mapping[str, Any], link: Link) -> None:
        self._link = link
        self._record, self._version = link.wires["command"], 0
        self._period_ns = round(NS / float(config["control_hz"]))
        self._lease_ns = int(config["lease_ticks"]) * self._period_ns
        self._longest_stay_ns = round((float(config["orphan_s"]) + _LONGEST_STAY_S) * NS)
        self._heard_ns = now_ns()
        self._asked_ns: int | None = None
        self.refused = 0  # commands that were older than the lease when they were found
        self._taken_tick = -1
        self.applied_tick, self.applied_ns = -1, 0

    def take(self) -> Value | None:
        """The command record that came since the last look, if any.

        One whose tick is longer ago than a command stays in force is refused: this process, or io in the middle of a tick, was
        stopped meanwhile, and the arm may have been told to stop, or been moved.
        """
        newer = self._record.read(self._version)
        if newer is None:
            return None
        self._version, value = newer
        now, tick = now_ns(), int(value["tick"])
        if now - (self._link.epoch_ns + tick * self._period_ns) > self._lease_ns:
            self.refused += 1
            return None
        self._heard_ns, self._taken_tick = now, tick
        return value

    def applied(self) -> None:
        """The command that was taken last has been handed to the robot."""
        self.applied_tick, self.applied_ns = self._taken_tick, now_ns()

    @property
    def is_lease_over(self) -> bool:
        """No command has come for as long as one stays in force."""
        return now_ns() - self._heard_ns > self._lease_ns

    @property
    def is_time_to_leave(self) -> bool:
        """The run is over and io sends no more; it first brakes and, when the supervisor died, holds the pose for a while."""
        if not self._link.is_stopping:
            return False
        if self._asked_ns is None:
            self._asked_ns = now_ns()
        return self.is_lease_over or now_ns() - self._asked_ns > self._longest_stay_ns

"""What the ros2 door says: commands, the chunk behind them, the mode and counters; in shadow under names no robot listens to."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgewam.core.errors import require
from edgewam.robot_bridge.clock import NS
from edgewam.robot_bridge.control.decision import Decision
from edgewam.robot_bridge.control.modes import Cause, Mode
from edgewam.robot_bridge.control.motion import Motion
from edgewam.robot_bridge.control.safety import Limits, Vector
from edgewam.robot_bridge.doors.dds.message_types import message_types
from edgewam.robot_bridge.doors.dds.network import Node

COMMANDS, TRAJECTORY = "joint_commands", "joint_trajectory"
MODE, STATUS = "rt/edgewam/mode", "rt/edgewam/status"
ARMED, SHADOW = "rt/edgewam/", "rt/edgewam/shadow/"


class Publisher:
    """Writers of one node.  A write that readers hold up is counted in `unsent` and dropped: the next tick has a newer one."""

    def __init__(self, node: Node, joint_names: tuple[str, ...], config: Mapping[str, Any], *, is_armed: bool) -> None:
        types = message_types()
        prefix = ARMED if is_armed else SHADOW
        self._types, self._names, self._is_armed = types, list(joint_names), is_armed
        self._limits = Limits.from_rates(config)
        self._ramp_ticks, self._hz = int(config["ramp_ticks"]), float(config["control_hz"])
        self._commands = node.writer(prefix + COMMANDS, types.JointState)
        self._trajectory = node.writer(prefix + TRAJECTORY, types.JointTrajectory)
        self._mode = node.writer(MODE, types.String)
        self._status = node.writer(STATUS, types.String)
        self._held_up = require("cyclonedds.core", extra="ros2").DDSException
        self._last_chunk, self._last_mode = -1, ""
        self.unsent: Counter[str] = Counter()

    def decided(self, tick: int, decision: Decision) -> None:
        """Publish a tick: its command, its chunk when that is new, its mode when that changed."""
        if decision.command is not None:
            self._write("commands", self._commands, self._joint_state(decision.command))
        chunk = decision.chunk
        if chunk is not None and int(chunk["id"]) != self._last_chunk and decision.command is not None:
            self._last_chunk = int(chunk["id"])
            rows = chunk["actions"][decision.row + 1 : int(chunk["rows"])].astype(np.float64)
            self._write("trajectory", self._trajectory, self._joint_trajectory(tick, decision.command, rows))
        self.say_mode(decision.mode, decision.cause)

    def say_mode(self, mode: Mode, cause: Cause, *, again: bool = False) -> None:
        """`RUN`, `HOLD NO_CHUNK`, ... with ` (shadow)` behind it; only when it changed, or `again`."""
        text = mode.name + ("" if cause is Cause.NONE else f" {cause.name}") + ("" if self._is_armed else " (shadow)")
        if text != self._last_mode or again:
            self._last_mode = text
            self._write("mode", self._mode, self._types.String(data=text))

    def say_status(self, status: Mapping[str, Any]) -> None:
        """Counters as JSON."""
        self._write("status", self._status, self._types.String(data=json.dumps(status)))

    def preview(self, tick: int, command: Vector, rows: Vector) -> list[Vector]:
        """The commands [D] that follow `command` when the rows [N, D] are followed to the end: through the filter, from rest."""
        motion, commands = Motion(self._limits, self._ramp_ticks, command, tick), []
        for offset, row in enumerate(rows, 1):
            motion.begin(tick + offset)
            motion.commit(motion.follow(row, self._limits.max_step)[0])
            commands.append(motion.last)
        return commands

    def _header(self) -> Any:
        seconds, nanoseconds = divmod(time.time_ns(), NS)  # ROS time is wall-clock time; nothing here depends on it
        return self._types.Header(stamp=self._types.Time(sec=seconds, nanosec=nanoseconds), frame_id="")

    def _joint_state(self, command: Vector) -> Any:
        return self._types.JointState(header=self._header(), name=self._names, position=command.tolist(), velocity=[], effort=[])

    def _joint_trajectory(self, tick: int, command: Vector, rows: Vector) -> Any:
        points = []
        for offset, pose in enumerate([command, *self.preview(tick, command, rows)]):
            seconds, nanoseconds = divmod(round(offset * NS / self._hz), NS)
            after = self._types.Duration(sec=seconds, nanosec=nanoseconds)
            points.append(
                self._types.JointTrajectoryPoint(
                    positions=pose.tolist(), velocities=[], accelerations=[], effort=[], time_from_start=after
                )
            )
        return self._types.JointTrajectory(header=self._header(), joint_names=self._names, points=points)

    def _write(self, what: str, writer: Any, message: Any) -> None:
        try:
            writer.write(message)
        except self._held_up:
            self.unsent[what] += 1

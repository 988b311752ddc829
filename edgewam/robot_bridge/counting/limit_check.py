"""The limits checked once more, from the log, with code that shares nothing with the filter and its own check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgewam.robot_bridge.records.shm_record import Value

_ROUNDING = 1e-9  # (a + b) - a may differ from b by the last bits of a; nothing a motor could notice


class LimitCheck:
    """Takes the log some rows at a time.  config: lower, upper, max_velocity, max_acceleration (or None) [D], control_hz."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        hz = float(config["control_hz"])
        self._lower, self._upper = np.array(config["lower"], np.float64), np.array(config["upper"], np.float64)
        self._max_step = np.array(config["max_velocity"], np.float64) / hz
        acceleration = config["max_acceleration"]
        self._max_change = None if acceleration is None else np.array(acceleration, np.float64) / hz**2
        self._command: Value = np.full_like(self._lower, np.nan)  # before the first row; NaN: nothing is known of it
        self._step: Value = np.zeros_like(self._lower)
        self._tick = -1

    def forget(self) -> None:
        """Rows are missing: nothing is known of the command and the step before the next row, and nothing concluded from them."""
        self._command, self._step = np.full_like(self._command, np.nan), np.full_like(self._step, np.nan)

    def count(self, rows: Value) -> int:
        """How many commands of rows [n > 0] are not finite, out of range, or change too much from the one before.

        That is: in place, and in speed where the acceleration is limited.  An anchor, where the robot was measured anew, has no
        predecessor: only its range is checked.  Over a tick without a command the arm stood.
        """
        command = rows["command"]
        in_range = (self._lower - _ROUNDING <= command) & (command <= self._upper + _ROUNDING)  # also false for NaN
        is_anchor = (rows["is_anchor"] != 0)[:, None]
        step = np.where(is_anchor, 0.0, command - np.concatenate([self._command[None], command[:-1]]))
        is_bad = np.abs(step) > self._max_step + _ROUNDING  # false where a step is unknown
        if self._max_change is not None:
            before = np.concatenate([self._step[None], step[:-1]])
            before[np.diff(rows["tick"], prepend=self._tick) != 1] = 0.0
            is_bad |= ~is_anchor & (np.abs(step - before) > self._max_change + _ROUNDING)
        self._command, self._step, self._tick = command[-1], step[-1], int(rows["tick"][-1])
        return int((is_bad | ~in_range).any(axis=1).sum())

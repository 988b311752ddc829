"""Limits of motion, and an independent check of the commands that are about to be sent.

The check knows nothing of the filter (`filter.py`): it looks at commands only, one joint at a time, so that a mistake there
cannot hide here.  The report counts violations from the log with the same check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_ROUNDING = 1e-9  # (a + b) - a may differ from b by the last bits of a; nothing a motor could notice
ANCHOR_MARGIN = 0.02  # parts of a joint's range: a gripper that is fully open or an arm on its stop reads a little beyond
LIMITS_MARGIN = 0.5  # parts of a joint's range: a first action farther outside is a mistake (units, order), not noise


@dataclass(frozen=True, eq=False)
class Limits:
    """lower, upper [D]: command range.  max_step [D]: largest change from one command to the next.

    max_jump [D]: a chunk whose first action is farther than this from the last command is refused while running.
    approach_step [D]: largest change per tick while a hold is being left.
    max_change [D] or None: largest change of the step from one tick to the next, the acceleration limit.
    """

    lower: Vector
    upper: Vector
    max_step: Vector
    max_jump: Vector
    approach_step: Vector
    max_change: Vector | None = None

    @classmethod
    def from_rates(cls, config: Mapping[str, Any]) -> Limits:
        """From plain numbers: lower, upper, max_velocity, max_acceleration or None [D], control_hz, jump_s, approach_fraction."""
        lower, upper, velocity = (np.array(config[name], np.float64) for name in ("lower", "upper", "max_velocity"))
        hz = float(config["control_hz"])
        acceleration = config["max_acceleration"]
        change = None if acceleration is None else np.array(acceleration, np.float64) / hz**2
        step = velocity / hz
        return cls(lower, upper, step, velocity * config["jump_s"], step * config["approach_fraction"], change)

    def has(self, pose: Vector, margin: Vector) -> bool:
        """Whether a pose [D] is within the range, or outside by `margin` [D] at most; not when it is not finite."""
        return bool(((pose >= self.lower - margin) & (pose <= self.upper + margin)).all())


def is_violation(
    command: Vector,
    previous: Vector | None,
    lower: Vector,
    upper: Vector,
    max_step: Vector,
    last_step: Vector | None = None,
    max_change: Vector | None = None,
) -> bool:
    """Whether a command [D] is not finite, out of range, or too far from the one before (None: no one before).

    With `max_change`, also whether its step differs too much from `last_step`, the step before (None: it stood).
    """
    for joint, value in enumerate(command.tolist()):
        if not (float(lower[joint]) - _ROUNDING <= value <= float(upper[joint]) + _ROUNDING):  # also false for NaN
            return True
        if previous is None:
            continue
        step = value - float(previous[joint])
        if not abs(step) <= float(max_step[joint]) + _ROUNDING:
            return True
        before = 0.0 if last_step is None else float(last_step[joint])
        if max_change is not None and not abs(step - before) <= float(max_change[joint]) + _ROUNDING:
            return True
    return False


class Watch:
    """`is_violation` over a sequence of commands: remembers the ones before.

    Over a tick without a command the arm stood, so the next step begins from rest.  An anchor has no predecessor.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._tick = 0
        self._previous: Vector | None = None
        self._last_step: Vector | None = None

    def is_violation(self, tick: int, command: Vector, *, is_anchor: bool = False) -> bool:
        """Whether this command, sent in this tick, would break a limit."""
        limits = self._limits
        previous = None if is_anchor else self._previous
        last_step = self._last_step if tick == self._tick + 1 else None
        return is_violation(command, previous, limits.lower, limits.upper, limits.max_step, last_step, limits.max_change)

    def sent(self, tick: int, command: Vector, *, is_anchor: bool = False) -> None:
        """Remember what was sent."""
        self._last_step = None if is_anchor or self._previous is None else command - self._previous
        self._tick, self._previous = tick, command


def mask_to_bits(mask: Mask) -> int:
    """Joint mask [D <= 32] -> integer with bit j for joint j."""
    return int(np.dot(mask, 1 << np.arange(len(mask), dtype=np.int64)))

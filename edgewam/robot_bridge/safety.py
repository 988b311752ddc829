"""Limits of motion: the clamps every command passes, and an independent check of what came out of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_ROUNDING = 1e-9  # (a + b) - a may differ from b by the last bits of a; nothing a motor could notice


@dataclass(frozen=True, eq=False)
class Limits:
    """lower, upper [D]: command range.  max_step [D]: largest change from one command to the next.

    max_jump [D]: a chunk whose first action is farther than this from the last command is refused while running.
    approach_step [D]: largest change per tick while a hold is being left.
    """

    lower: Vector
    upper: Vector
    max_step: Vector
    max_jump: Vector
    approach_step: Vector

    @classmethod
    def from_rates(cls, config: Mapping[str, Any]) -> Limits:
        """From plain numbers: lower, upper, max_velocity [D] per second, control_hz, jump_s, approach_fraction."""
        lower, upper, velocity = (np.array(config[name], np.float64) for name in ("lower", "upper", "max_velocity"))
        step = velocity / config["control_hz"]
        return cls(lower, upper, step, velocity * config["jump_s"], step * config["approach_fraction"])


def clamp(target: Vector, previous: Vector, limits: Limits, max_step: Vector) -> tuple[Vector, Mask, Mask]:
    """Bring a finite target [D] within the range, then within `max_step` of the previous command.

    Returns the command and which joints each of the two clamps changed.
    """
    ranged = np.clip(target, limits.lower, limits.upper)
    command = np.clip(ranged, previous - max_step, previous + max_step)
    return command, ranged != target, command != ranged


def is_violation(command: Vector, previous: Vector | None, lower: Vector, upper: Vector, max_step: Vector) -> bool:
    """Whether a command [D] is not finite, out of range, or too far from the one before (None: no one before).

    Written without the clamps above, joint by joint, so that a mistake there cannot hide here.
    """
    for joint, value in enumerate(command.tolist()):
        if not (float(lower[joint]) - _ROUNDING <= value <= float(upper[joint]) + _ROUNDING):  # also false for NaN
            return True
        if previous is not None and not abs(value - float(previous[joint])) <= float(max_step[joint]) + _ROUNDING:
            return True
    return False


def mask_to_bits(mask: Mask) -> int:
    """Joint mask [D <= 32] -> integer with bit j for joint j."""
    return int(np.dot(mask, 1 << np.arange(len(mask), dtype=np.int64)))

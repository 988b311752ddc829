"""How smoothly an episode was commanded, and whether the joints between chunks are rougher than the chunks themselves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from edgewam.robot_bridge.robot import Vector

_WINDOW = 4  # ticks that one third difference spans


@dataclass(frozen=True)
class Smoothness:
    """Root mean square jerk, over joints and ticks: where a new chunk begins, and within chunks; None without such ticks.

    Jerk is the third difference of the commands in units of what the joint may move in one tick.
    """

    seam_jerk: float | None
    inner_jerk: float | None


def smoothness(commands: Sequence[Vector], seams: Collection[int], max_velocity: Vector, control_hz: float) -> Smoothness:
    """Measure commands [T][D]; `seams` are the ticks whose command is the first one of a new chunk."""
    if len(commands) < _WINDOW:
        return Smoothness(None, None)
    jerk = np.square(np.diff(np.stack(commands) / (max_velocity / control_hz), 3, axis=0)).mean(1)  # row t spans t .. t + 3
    at_seam = np.zeros(len(jerk), np.bool_)
    for tick in seams:  # the difference that spans t .. t + 3 sees the seam if t < tick <= t + 3
        at_seam[max(0, tick - _WINDOW + 1) : max(0, tick)] = True
    parts = (jerk[at_seam], jerk[~at_seam])
    return Smoothness(*(float(np.sqrt(part.mean())) if len(part) else None for part in parts))

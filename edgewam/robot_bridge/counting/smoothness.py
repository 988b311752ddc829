"""How smoothly an arm was commanded, and whether the joints between chunks are rougher than the chunks themselves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    if not len(commands):
        return Smoothness(None, None)
    at_seam = np.zeros(len(commands), np.bool_)
    at_seam[[tick for tick in seams if 0 <= tick < len(commands)]] = True
    meter = SmoothnessMeter(max_velocity, control_hz)
    meter.add(np.stack(commands), at_seam, np.zeros(len(commands), np.int64))
    return meter.result()


class SmoothnessMeter:
    """The same for a run of any length, some commands at a time."""

    def __init__(self, max_velocity: Vector, control_hz: float) -> None:
        self._per_tick = max_velocity / control_hz
        self._commands: Vector = np.zeros((0, len(self._per_tick)))
        self._at_seam = np.zeros(0, np.bool_)
        self._parts: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._sums, self._counts = np.zeros(2), np.zeros(2, np.int64)  # within chunks, at seams

    def add(self, commands: Vector, at_seam: npt.NDArray[np.bool_], parts: npt.NDArray[np.int64]) -> None:
        """Go on with commands [n, D].  No difference is taken across a change of `parts` [n], such as an episode's number."""
        commands = np.concatenate([self._commands, commands / self._per_tick])
        at_seam = np.concatenate([self._at_seam, at_seam])
        parts = np.concatenate([self._parts, parts])
        if len(commands) >= _WINDOW:
            jerk = np.square(np.diff(commands, 3, axis=0)).mean(1)  # row t spans t .. t + 3
            # that difference sees the seams in t + 1 .. t + 3
            sees_seam = (at_seam[1:-2] | at_seam[2:-1] | at_seam[3:]).astype(np.int64)
            is_whole = parts[3:] == parts[:-3]
            for kind in (0, 1):
                found = jerk[is_whole & (sees_seam == kind)]
                self._sums[kind] += found.sum()
                self._counts[kind] += len(found)
        keep = max(0, len(commands) - (_WINDOW - 1))
        self._commands, self._at_seam, self._parts = commands[keep:].copy(), at_seam[keep:].copy(), parts[keep:].copy()

    def result(self) -> Smoothness:
        """So far."""
        inner, seam = (float(np.sqrt(s / n)) if n else None for s, n in zip(self._sums, self._counts, strict=True))
        return Smoothness(seam, inner)

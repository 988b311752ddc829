"""An accepted chunk as a function of time, and what a strategy makes of several: one target for one tick.

Rows of a policy that is slower than the control loop lie `ticks_per_row` ticks apart; between two of them the target is their
linear mix.  Nothing is extrapolated: there is no target before the first row or after the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgewam.robot_bridge.control.safety import Vector
from edgewam.robot_bridge.records.shm_record import Value


class TimedRows:
    """One chunk record; `actions` float64 [rows, D]."""

    def __init__(self, record: Value) -> None:
        self.record = record
        self.start = int(record["start_tick"])
        self.ticks_per_row = int(record["ticks_per_row"])
        self.actions: npt.NDArray[np.float64] = record["actions"][: int(record["rows"])].astype(np.float64)

    @property
    def last_tick(self) -> int:
        """The tick of the last row."""
        return self.start + (len(self.actions) - 1) * self.ticks_per_row

    def row(self, tick: int) -> int:
        """The row that a tick belongs to: the one at or before it."""
        return (tick - self.start) // self.ticks_per_row

    def at(self, tick: int) -> Vector | None:
        """The target [D] of a tick, or None outside of the chunk."""
        if not self.start <= tick <= self.last_tick:
            return None
        row, past = divmod(tick - self.start, self.ticks_per_row)
        here: Vector = self.actions[row]
        if not past:
            return here
        share = past / self.ticks_per_row
        mixed: Vector = (1.0 - share) * here + share * self.actions[row + 1]
        return mixed


@dataclass(frozen=True, eq=False)
class Target:
    """Where to go in a tick [D], the newest chunk that had a say in it, and how many had."""

    pose: Vector
    newest: TimedRows
    num_blended: int = 1


class Schedule(Protocol):
    """A strategy.  Holds a fixed number of chunks at most."""

    def add(self, chunk: TimedRows, tick: int) -> None:
        """A chunk that begins to count at `tick`, newer than those before it."""

    def clear(self) -> None:
        """Forget all chunks."""

    def target(self, tick: int) -> Target | None:
        """What to do in a tick not before the newest chunk's; None when no chunk has a row for it."""

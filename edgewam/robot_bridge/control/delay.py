"""What is decided already when a chunk is computed: the rows that the chunk before it will still command, and how many they are.

Pure arithmetic, no clock.  Real-time chunking gives the policy as many rows as ticks pass until its chunk moves the robot.  One
too few and the chunk is refused, one too many only costs reaction time: so the estimate is the largest of the last delays, and
begins at the limit.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]
WINDOW = 10


class DelayEstimator:
    """`ticks`: the estimate, at most `limit` (what the weights were trained for).

    The first chunk of an episode waited for a context and a robot, so its delay says nothing about the next ones.
    """

    def __init__(self, limit: int, window: int = WINDOW) -> None:
        self._limit = limit
        self._delays: deque[int] = deque(maxlen=window)
        self._sent = self._heard = -1
        self._uncounted: set[int] = set()

    @property
    def ticks(self) -> int:
        """Control ticks to condition the next chunk on."""
        return min(self._limit, max(self._delays, default=self._limit))

    def sent(self, chunk_id: int, is_first: bool) -> None:
        """A chunk was published; ids grow."""
        self._sent = chunk_id
        if is_first:
            self._uncounted = {chunk_id}

    def hear(self, applied_id: int, delay_ticks: int) -> None:
        """What io says when the next chunk is due: the newest chunk that moved the robot, and its delay.

        A chunk that has not been applied by then came too late for its prefix (or was refused): the estimate rises by one.
        """
        if applied_id != self._heard:
            self._heard = applied_id
            if applied_id <= self._sent and applied_id not in self._uncounted:
                self._delays.append(delay_ticks)
        if self._sent > applied_id and self._sent not in self._uncounted:
            self._delays.append(min(self._limit, self.ticks + 1))


def committed(actions: Rows, start_tick: int, tick: int, num_rows: int, ticks_per_row: int = 1) -> Rows:
    """What a chunk [rows, D] commands from `tick` on, float32 [k <= num_rows, D], one row per `ticks_per_row` control ticks.

    Between two rows the robot follows a straight line.  Fewer rows come back where the chunk ends.
    """
    place = (tick - start_tick) / ticks_per_row + np.arange(num_rows)
    place = place[(place >= 0) & (place <= len(actions) - 1)]
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, len(actions) - 1)
    share = (place - low).astype(np.float32)[:, None]
    rows: Rows = (actions[low] + share * (actions[high] - actions[low])).astype(np.float32)
    return rows

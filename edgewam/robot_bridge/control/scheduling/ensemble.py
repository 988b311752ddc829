"""Temporal ensembling: the weighted mean of all chunks that have a row for the tick.

Weights are exp(-decay * k) with k = 0 for the *oldest* chunk, the convention of ACT (Zhao et al. 2023, arXiv 2304.13705,
section IV-B), so a larger decay trusts new chunks less.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from edgewam.robot_bridge.control.scheduling.timed_rows import Target, TimedRows

MAX_CHUNKS = 16  # more of them at once would mean a chunk every fourth tick at 64 rows; the oldest is dropped then


class Ensemble:
    """See `Schedule`."""

    def __init__(self, decay: float) -> None:
        self._weights = np.exp(-decay * np.arange(MAX_CHUNKS))
        self._chunks: deque[TimedRows] = deque(maxlen=MAX_CHUNKS)

    def add(self, chunk: TimedRows, tick: int) -> None:
        """See `Schedule`."""
        while self._chunks and self._chunks[0].last_tick < tick:
            self._chunks.popleft()
        self._chunks.append(chunk)

    def clear(self) -> None:
        """See `Schedule`."""
        self._chunks.clear()

    def target(self, tick: int) -> Target | None:
        """The weighted mean of this tick's rows."""
        found = [(chunk, pose) for chunk in self._chunks if (pose := chunk.at(tick)) is not None]
        if not found:
            return None
        weights = self._weights[: len(found)]
        poses = np.stack([pose for _, pose in found])
        return Target(weights @ poses / weights.sum(), found[-1][0], len(found))

"""A linear cross-fade of K ticks from what was followed to the newest chunk.

In its i-th tick (i = 1, 2, ...) a new chunk has the weight min(1, i / (K + 1)).  A chunk that arrives during a fade fades in
over the mix, so the target has no step; where the older ones have no row, the newer ones are followed alone.
"""

from __future__ import annotations

from collections import deque

from edgewam.robot_bridge.control.safety import Vector
from edgewam.robot_bridge.control.scheduling.timed_rows import Target, TimedRows

MAX_CHUNKS = 8  # fades that overlap; more would need a chunk in nearly every tick


class Crossfade:
    """See `Schedule`."""

    def __init__(self, ticks: int) -> None:
        self._ticks = ticks
        self._chunks: deque[tuple[TimedRows, int]] = deque(maxlen=MAX_CHUNKS)  # oldest first, with the tick it arrived in

    def add(self, chunk: TimedRows, tick: int) -> None:
        """See `Schedule`."""
        self._chunks.append((chunk, tick))

    def clear(self) -> None:
        """See `Schedule`."""
        self._chunks.clear()

    def target(self, tick: int) -> Target | None:
        """The mix of this tick; None where the newest chunk has no row, whatever older ones had meant to do."""
        if not self._chunks or self._chunks[-1][0].at(tick) is None:
            return None
        mix: Vector | None = None
        num_blended = 0
        for chunk, since in self._chunks:
            pose, share = chunk.at(tick), min(1.0, (tick - since + 1) / (self._ticks + 1))
            if pose is None:
                continue
            if mix is None or share == 1.0:
                mix, num_blended = pose, 1
            else:
                mix, num_blended = (1.0 - share) * mix + share * pose, num_blended + 1
        assert mix is not None
        return Target(mix, self._chunks[-1][0], num_blended)

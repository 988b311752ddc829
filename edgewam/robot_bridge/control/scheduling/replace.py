"""The newest chunk from the tick it arrives in.  Rows that are past by then are skipped."""

from __future__ import annotations

from edgewam.robot_bridge.control.scheduling.timed_rows import Target, TimedRows


class Replace:
    """See `Schedule`."""

    def __init__(self) -> None:
        self._chunk: TimedRows | None = None

    def add(self, chunk: TimedRows, tick: int) -> None:
        """See `Schedule`."""
        self._chunk = chunk

    def clear(self) -> None:
        """See `Schedule`."""
        self._chunk = None

    def target(self, tick: int) -> Target | None:
        """The chunk's row of this tick."""
        pose = None if self._chunk is None else self._chunk.at(tick)
        return None if self._chunk is None or pose is None else Target(pose, self._chunk)

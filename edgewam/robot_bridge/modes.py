"""The modes of the bridge as a pure state machine: INIT -> READY -> RUN -> HOLD -> STOP / ESTOP, one `step` per control tick.

HOLD recovers by itself; STOP and ESTOP are latched until the bridge is started again.  A new episode of a simulator goes back
to READY, a declared pause: it lasts until the first chunk, and a pause that lasts too long counts as HOLD.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Mode(IntEnum):
    """What the bridge does with the arm in a tick."""

    INIT = 0  # the robot has not reported yet: nothing is sent
    READY = 1  # holds the start pose and waits for the first chunk
    RUN = 2  # follows chunks
    HOLD = 3  # keeps or slowly approaches a pose until there is something safe to follow
    STOP = 4  # latched: brakes and keeps the pose
    ESTOP = 5  # latched: repeats the last command at once


class Cause(IntEnum):
    """Why a tick was held."""

    NONE = 0
    NO_CHUNK = 1  # no valid chunk has a row for this tick
    STALE_STATE = 2  # the robot's state is old or not finite
    APPROACH = 3  # a valid chunk is there but out of reach: moving towards it at limited speed


@dataclass(frozen=True)
class Situation:
    """What one tick finds.  `distance`: None without a row for this tick, else whether that row is within reach."""

    is_state_fresh: bool
    is_row_in_reach: bool | None
    is_new_episode: bool = False
    is_stop_asked: bool = False
    is_estop_asked: bool = False


class ModeMachine:
    """Holds the mode and why.  `max_pause_ticks` in READY before it counts as HOLD, `max_hold_ticks` in HOLD before STOP."""

    def __init__(self, max_pause_ticks: int, max_hold_ticks: int) -> None:
        self.mode = Mode.INIT
        self.cause = Cause.NONE
        self._max_pause_ticks = max_pause_ticks
        self._max_hold_ticks = max_hold_ticks
        self._ticks_in_mode = 0

    def step(self, situation: Situation) -> Mode:
        """Advance by one tick and return the mode that this tick is in."""
        before = self.mode
        self.mode, self.cause = self._next(situation)
        self._ticks_in_mode = self._ticks_in_mode + 1 if self.mode is before and not situation.is_new_episode else 1
        return self.mode

    def trip(self) -> None:
        """Latch ESTOP from inside: the filter let something through that it must not."""
        self.mode, self.cause, self._ticks_in_mode = Mode.ESTOP, Cause.NONE, 1

    def _next(self, situation: Situation) -> tuple[Mode, Cause]:
        if self.mode is Mode.ESTOP or situation.is_estop_asked:
            return Mode.ESTOP, Cause.NONE
        if self.mode is Mode.STOP or situation.is_stop_asked:
            return Mode.STOP, self.cause
        if self.mode is Mode.INIT or situation.is_new_episode:
            return (Mode.READY, Cause.NONE) if situation.is_state_fresh else (Mode.INIT, Cause.STALE_STATE)
        if self.mode is Mode.HOLD and self._ticks_in_mode >= self._max_hold_ticks:
            return Mode.STOP, self.cause
        if not situation.is_state_fresh:
            return Mode.HOLD, Cause.STALE_STATE
        if situation.is_row_in_reach is None:
            waiting = self.mode is Mode.READY and self._ticks_in_mode < self._max_pause_ticks
            return (Mode.READY, Cause.NONE) if waiting else (Mode.HOLD, Cause.NO_CHUNK)
        if situation.is_row_in_reach or self.mode is Mode.RUN:
            return Mode.RUN, Cause.NONE
        return Mode.HOLD, Cause.APPROACH

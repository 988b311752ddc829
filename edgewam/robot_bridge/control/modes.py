"""The modes of the bridge as a pure state machine: INIT -> READY -> RUN -> HOLD -> STOP / ESTOP, one `step` per control tick.

HOLD recovers by itself once its reason is gone and enough good chunks came in a row.  STOP is left by a local reset only, ESTOP
never.  A new episode of a simulator goes back to READY, a declared pause: it lasts until the first chunk, and a pause that lasts
too long counts as HOLD.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Mode(IntEnum):
    """What the bridge does with the arm in a tick."""

    INIT = 0  # the robot has not reported yet: nothing is sent
    READY = 1  # holds the start pose and waits for the first chunk, or to be armed
    RUN = 2  # follows chunks
    HOLD = 3  # keeps or slowly approaches a pose until there is something safe to follow
    STOP = 4  # latched: brakes and keeps the pose
    ESTOP = 5  # latched for ever: stands still as soon as the limits allow


class Cause(IntEnum):
    """Why a tick was held, or what latched STOP or ESTOP."""

    NONE = 0
    NO_CHUNK = 1  # no valid chunk has a row for this tick
    STALE_STATE = 2  # the robot's state is old or not finite
    APPROACH = 3  # a valid chunk is there but out of reach: moving towards it at limited speed
    CAMERA = 4  # the oldest camera image is too old
    ENGINE_LOST = 5  # the engine has given no sign of life for too long
    OLD_CONTEXT = 6  # no row, because the newest chunk's planner context was too old
    REQUEST = 7  # somebody asked for it
    REJECTS = 8  # too many bad chunks in a row
    RECOVERING = 9  # all is well again, but too few good chunks have come since
    DISARMED = 10  # nobody has armed the robot
    WORKSPACE = 11  # the workspace function refused the command
    ORPHANED = 12  # the supervisor is gone
    VIOLATION = 13  # the filter let something through that it must not
    OUT_OF_RANGE = 14  # the robot stands too far outside of its range to be held there


@dataclass(frozen=True)
class Patience:
    """How long to wait, in ticks or chunks: READY before it counts as HOLD, HOLD before STOP, good chunks, bad chunks."""

    max_pause_ticks: int
    max_hold_ticks: int
    resume_chunks: int
    max_rejects: int


@dataclass(frozen=True)
class Situation:
    """What one tick finds.

    is_row_in_reach: None without a row for this tick, else whether that row is within reach.
    chunk: whether the chunk received in this tick was accepted; None when none was.
    trouble: CAMERA, ENGINE_LOST or NONE.  without_row: what a missing row is due to.
    is_new_episode, is_reset: the robot's pose was taken as a new start, in an episode or after a local reset.
    stop: what asks for a stop, or NONE.
    """

    is_state_good: bool
    is_row_in_reach: bool | None
    chunk: bool | None = None
    is_armed: bool = True
    trouble: Cause = Cause.NONE
    without_row: Cause = Cause.NO_CHUNK
    is_new_episode: bool = False
    is_reset: bool = False
    stop: Cause = Cause.NONE
    is_estop_asked: bool = False


class ModeMachine:
    """Holds the mode and why.

    Disarmed ticks count neither as pause nor as hold: somebody wants the arm to stand.
    """

    def __init__(self, patience: Patience) -> None:
        self.mode = Mode.INIT
        self.cause = Cause.NONE
        self._patience = patience
        self._paused_ticks = 0  # in READY
        self._held_ticks = 0  # in HOLD
        self._held_before = 0  # the same, before this tick
        self._good_chunks = 0  # accepted in a row
        self._needed_chunks = 1  # of them, before the arm may follow
        self._rejects = 0  # in a row

    def step(self, situation: Situation) -> Mode:
        """Advance by one tick and return the mode that this tick is in."""
        self._count_chunk(situation)
        self.mode, self.cause = self._next(situation)
        self._count_ticks(situation)
        return self.mode

    def trip(self) -> None:
        """Latch ESTOP from inside: the filter let something through that it must not."""
        self.mode, self.cause = Mode.ESTOP, Cause.VIOLATION

    def refuse(self) -> None:
        """The command that this tick had in mind may not be sent: it is held instead, and good chunks count anew."""
        self.mode, self.cause = Mode.HOLD, Cause.WORKSPACE
        self._held_ticks = self._held_before + 1
        self._demand()

    def _count_chunk(self, situation: Situation) -> None:
        if situation.is_new_episode or situation.is_reset:
            self._good_chunks = self._rejects = 0
            self._needed_chunks = self._patience.resume_chunks if situation.is_reset else 1
        if situation.chunk is not None:
            self._good_chunks = self._good_chunks + 1 if situation.chunk else 0
            self._rejects = 0 if situation.chunk else self._rejects + 1

    def _count_ticks(self, situation: Situation) -> None:
        is_waiting = self.mode is Mode.READY and situation.is_armed
        is_first = situation.is_new_episode or situation.is_reset
        self._paused_ticks = (0 if is_first else self._paused_ticks) + 1 if is_waiting else 0
        self._held_before = self._held_ticks
        is_held = self.mode is Mode.HOLD and self.cause is not Cause.DISARMED
        self._held_ticks = self._held_ticks + 1 if is_held else 0

    def _next(self, situation: Situation) -> tuple[Mode, Cause]:
        if self.mode is Mode.ESTOP:
            return self.mode, self.cause
        if situation.is_estop_asked:
            return Mode.ESTOP, Cause.REQUEST
        if self.mode is Mode.STOP and not (situation.is_reset and situation.stop is Cause.NONE):
            return self.mode, self.cause
        if situation.stop is not Cause.NONE:
            return Mode.STOP, situation.stop
        if situation.is_reset or situation.is_new_episode:
            return Mode.READY, Cause.NONE
        if self.mode is Mode.INIT:
            return Mode.INIT, Cause.STALE_STATE if not situation.is_state_good else Cause.OUT_OF_RANGE
        if self._rejects >= self._patience.max_rejects:
            return Mode.STOP, Cause.REJECTS
        if self.mode is Mode.HOLD and self._held_ticks >= self._patience.max_hold_ticks:
            return Mode.STOP, self.cause
        return self._led(situation)

    def _led(self, situation: Situation) -> tuple[Mode, Cause]:
        """READY, RUN or HOLD: what the arm is led by decides."""
        reason = _missing(situation)
        if self.mode is Mode.READY:
            if reason is Cause.DISARMED:
                return Mode.READY, Cause.NONE
            waits = reason is not Cause.NONE or self._good_chunks < self._needed_chunks
            if waits and reason is not Cause.STALE_STATE and self._paused_ticks < self._patience.max_pause_ticks:
                return Mode.READY, Cause.NONE
        if self.mode is Mode.RUN and reason is Cause.NONE:
            return Mode.RUN, Cause.NONE
        if reason is not Cause.NONE:
            self._demand(keeps_count=self.mode is Mode.HOLD and reason in (Cause.NO_CHUNK, Cause.OLD_CONTEXT))
            return Mode.HOLD, reason
        if self._good_chunks < self._needed_chunks:
            return Mode.HOLD, Cause.RECOVERING
        return (Mode.RUN, Cause.NONE) if situation.is_row_in_reach else (Mode.HOLD, Cause.APPROACH)

    def _demand(self, *, keeps_count: bool = False) -> None:
        """From here on, `resume_chunks` good chunks in a row.  A gap between chunks does not make the ones before it bad."""
        self._needed_chunks = self._patience.resume_chunks
        if not keeps_count:
            self._good_chunks = 0


def _missing(situation: Situation) -> Cause:
    """The most serious thing that keeps the arm from following."""
    if not situation.is_state_good:
        return Cause.STALE_STATE
    if not situation.is_armed:
        return Cause.DISARMED
    if situation.trouble is not Cause.NONE:
        return situation.trouble
    return situation.without_row if situation.is_row_in_reach is None else Cause.NONE

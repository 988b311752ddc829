"""One control tick of the bridge as a pure function of what is known: no clock, no memory maps, no processes.

A tick takes in at most one chunk, asks the mode machine what to do, follows the chunk's row for this very tick, clamps it and
checks what comes out.  Chunks are indexed by time: rows that are past are skipped, beyond the last row there is HOLD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewam.robot_bridge.chunks import Reject, check
from edgewam.robot_bridge.modes import Cause, Mode, ModeMachine, Situation
from edgewam.robot_bridge.safety import Limits, Vector, clamp, is_violation, mask_to_bits
from edgewam.robot_bridge.shm_record import Value


@dataclass(frozen=True)
class Sensed:
    """The robot's newest report: joint state [D], its episode and when it was measured."""

    state: Vector
    episode: int
    t_ns: int


@dataclass(frozen=True)
class Decision:
    """What a tick decided.  command: None only before the robot has reported.  chunk: the one that supplied the command."""

    mode: Mode
    cause: Cause
    command: Vector | None
    chunk: Value | None = None
    row: int = -1
    reject: Reject = Reject.NONE
    range_clamps: int = 0  # bit j: the target of joint j was out of its range
    step_clamps: int = 0  # bit j: ... too far from the last command
    is_violation: bool = False


class Controller:
    """Holds the last command, the chunk in use and the mode.

    Besides the limits `config` has: control_hz, max_pause_s, max_hold_s, max_state_age_s, max_observation_age_s, ramp_ticks.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        hz = float(config["control_hz"])
        self._limits = Limits.from_rates(config)
        self._machine = ModeMachine(round(config["max_pause_s"] * hz), round(config["max_hold_s"] * hz))
        self._max_state_age_ns = round(config["max_state_age_s"] * 1e9)
        self._max_observation_age_ns = round(config["max_observation_age_s"] * 1e9)
        self._ramp_ticks = int(config["ramp_ticks"])
        self._chunk: Value | None = None
        self._last: Vector | None = None  # last command, or the pose an episode started from
        self._velocity: Vector = np.zeros(len(self._limits.lower))  # last change per tick while following
        self._ramp_left = 0
        self._last_id = -1
        self.episode = -1

    def step(
        self, tick: int, now_ns: int, sensed: Sensed | None, received: Value | None, *, stop: bool = False, estop: bool = False
    ) -> Decision:
        """Decide tick `tick` at time `now_ns` from the newest robot report and the chunk record received since, if any."""
        is_fresh = sensed is not None and now_ns - sensed.t_ns <= self._max_state_age_ns and bool(np.isfinite(sensed.state).all())
        is_new = is_fresh and sensed is not None and sensed.episode != self.episode and self._machine.mode < Mode.STOP
        if is_new:
            assert sensed is not None
            self._anchor(sensed)
        reject = self._take_in(tick, now_ns, received) if received is not None else Reject.NONE
        row = self._row(tick)
        mode = self._machine.step(Situation(is_fresh, self._is_in_reach(row), is_new, stop, estop))
        if self._last is None:
            return Decision(mode, self._machine.cause, None, reject=reject)

        limits, range_clamps, step_clamps = self._limits, 0, 0
        if mode is Mode.RUN and row is not None:
            command, ranged, stepped = clamp(row, self._last, limits, limits.max_step)
            range_clamps, step_clamps = mask_to_bits(ranged), mask_to_bits(stepped)
            self._follow(command)
        elif self._machine.cause is Cause.APPROACH and mode is Mode.HOLD and row is not None:
            command, _, _ = clamp(row, self._last, limits, limits.approach_step)
            self._follow(command)
        elif mode is Mode.ESTOP:
            command = self._last
        else:
            command = self._brake()

        broken = is_violation(command, self._last, limits.lower, limits.upper, limits.max_step)
        if broken:  # a mistake of ours: never send it
            self._machine.trip()
            command = self._last
        self._last = command
        supplied = mode is Mode.RUN and not broken
        return Decision(
            mode=self._machine.mode,
            cause=self._machine.cause,
            command=command,
            chunk=self._chunk if supplied else None,
            row=tick - int(self._chunk["start_tick"]) if supplied and self._chunk is not None else -1,
            reject=reject,
            range_clamps=range_clamps,
            step_clamps=step_clamps,
            is_violation=broken,
        )

    def _anchor(self, sensed: Sensed) -> None:
        """Begin an episode from where the robot is; nothing that was computed before it may move the arm."""
        self.episode = sensed.episode
        self._last = np.clip(sensed.state.astype(np.float64), self._limits.lower, self._limits.upper)
        self._velocity = np.zeros_like(self._last)
        self._ramp_left = 0
        self._chunk = None

    def _take_in(self, tick: int, now_ns: int, value: Value) -> Reject:
        reject = check(
            value,
            len(self._limits.lower),
            tick=tick,
            now_ns=now_ns,
            episode=self.episode,
            last_id=self._last_id,
            max_age_ns=self._max_observation_age_ns,
        )
        if reject is not Reject.NONE:
            return reject
        # only a running arm refuses a jump: one that holds approaches slowly, else a hold could never end
        first = _row_of(value, tick)
        if self._machine.mode is Mode.RUN and not self._is_in_reach(first):
            return Reject.JUMP
        self._chunk = value
        self._last_id = int(value["id"])
        return Reject.NONE

    def _row(self, tick: int) -> Vector | None:
        return None if self._chunk is None else _row_of(self._chunk, tick)

    def _is_in_reach(self, row: Vector | None) -> bool | None:
        if row is None or self._last is None:
            return None
        target = np.clip(row, self._limits.lower, self._limits.upper)
        return bool((np.abs(target - self._last) <= self._limits.max_jump).all())

    def _follow(self, command: Vector) -> None:
        assert self._last is not None
        self._velocity = command - self._last
        self._ramp_left = self._ramp_ticks

    def _brake(self) -> Vector:
        """The last command, reached with a speed that falls to zero in equal steps over `ramp_ticks`."""
        assert self._last is not None
        if self._ramp_left == 0:
            return self._last
        share = self._ramp_left / (self._ramp_ticks + 1)
        self._ramp_left -= 1
        return np.clip(self._last + share * self._velocity, self._limits.lower, self._limits.upper)


def _row_of(value: Value, tick: int) -> Vector | None:
    """The chunk's target [D] for a tick, by time; None outside of it."""
    index = tick - int(value["start_tick"])
    return value["actions"][index].astype(np.float64) if 0 <= index < int(value["rows"]) else None

"""One control tick of the bridge as a function of what is known: no clock, no memory maps, no processes.

A tick takes in at most one chunk, asks the mode machine what to do, follows the target that the schedule has for this very tick
(or brakes), passes it through the filter and checks what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewam.robot_bridge.control.chunks import Reject, Rules
from edgewam.robot_bridge.control.decision import Decision, Health, Sensed
from edgewam.robot_bridge.control.intake import Intake
from edgewam.robot_bridge.control.modes import Cause, Mode, ModeMachine, Patience, Situation
from edgewam.robot_bridge.control.motion import Motion
from edgewam.robot_bridge.control.orders import Orders
from edgewam.robot_bridge.control.safety import ANCHOR_MARGIN, Limits, Vector, Watch, mask_to_bits
from edgewam.robot_bridge.control.scheduling import open_schedule
from edgewam.robot_bridge.control.scheduling.timed_rows import Target
from edgewam.robot_bridge.control.workspace import load_workspace
from edgewam.robot_bridge.records.shm_record import Value


@dataclass
class _Move:
    """A command in the making, and who supplied it."""

    command: Vector
    target: Target | None = None
    range_clamps: int = 0
    step_clamps: int = 0
    acceleration_clamps: int = 0
    workspace: bool = False


class Controller:
    """Holds the mode, the last motion and the chunks in use.

    `config`: everything that `Limits`, `Rules` and `open_schedule` need, and max_pause_s, max_hold_s, resume_chunks, max_rejects,
    max_state_age_s, max_camera_age_s, engine_lost_s, ramp_ticks, workspace.
    applied_id, delay_ticks: the newest chunk that supplied a command, and control ticks from its observation to that command
    (or to its refusal, when it had been given too short a prefix: the engine must learn of the delay).
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        hz = float(config["control_hz"])
        self._limits = limits = Limits.from_rates(config)
        # the first command is the pose brought into the range, in one go: no more than a tick's motion, or sensor's inaccuracy
        self._anchor_margin = np.maximum(limits.max_step, ANCHOR_MARGIN * (limits.upper - limits.lower))
        self._machine = ModeMachine(
            Patience(
                max_pause_ticks=round(config["max_pause_s"] * hz),
                max_hold_ticks=round(config["max_hold_s"] * hz),
                resume_chunks=int(config["resume_chunks"]),
                max_rejects=int(config["max_rejects"]),
            )
        )
        self._schedule = open_schedule(config)
        self._workspace = load_workspace(config["workspace"])
        self._intake = Intake(Rules.from_config(config), self._limits, self._workspace)
        self._watch = Watch(self._limits)
        self._max_age_ns = {
            name: round(config[key] * 1e9)
            for name, key in (("state", "max_state_age_s"), ("camera", "max_camera_age_s"), ("engine", "engine_lost_s"))
        }
        self._ramp_ticks = int(config["ramp_ticks"])
        self._motion: Motion | None = None
        self._last_reject = Reject.NONE
        self._supplier = -1  # id of the chunk that supplied the last command, -1 when none did
        self._is_engaged = False  # armed, and anchored where the arm stood then
        self.episode = -1
        self.applied_id, self.delay_ticks = -1, 0

    @property
    def is_at_rest(self) -> bool:
        """Nothing is left to brake: the held pose may be left to the robot."""
        return self._motion is None or self._motion.is_at_rest

    def step(
        self, tick: int, now_ns: int, sensed: Sensed | None, received: Value | None, orders: Orders, health: Health
    ) -> Decision:
        """Decide tick `tick` at time `now_ns` from the newest robot report and the chunk record received since, if any."""
        is_good = sensed is not None and self._is_good(now_ns, sensed)
        self._is_engaged = self._is_engaged and orders.is_armed
        is_new, is_reset = (False, False) if sensed is None or not is_good else self._anchor_if_due(tick, sensed, orders)
        if self._motion is not None:
            self._motion.begin(tick)
        reject = self._take_in(tick, now_ns, received) if received is not None else Reject.NONE
        target = self._schedule.target(tick)
        self._machine.step(
            Situation(
                is_state_good=is_good,
                is_row_in_reach=None if target is None else self._is_in_reach(target.pose),
                chunk=None if received is None else reject is Reject.NONE,
                is_armed=orders.is_armed,
                trouble=self._trouble(sensed, health, orders),
                without_row=Cause.OLD_CONTEXT if self._last_reject is Reject.OLD_CONTEXT else Cause.NO_CHUNK,
                is_new_episode=is_new,
                is_reset=is_reset,
                stop=orders.stop,
                is_estop_asked=orders.estop,
            )
        )
        is_unanchored = orders.is_armed and not self._is_engaged and self.is_at_rest
        if self._motion is None or is_unanchored:  # nothing may be sent: the last command is not where the arm is
            return Decision(self._machine.mode, self._machine.cause, None, reject=reject)
        is_live = self._is_engaged or not self.is_at_rest
        move = self._move(self._motion, target)
        return self._commit(tick, self._motion, move, reject, is_new or is_reset, is_live)

    def _is_good(self, now_ns: int, sensed: Sensed) -> bool:
        # a time in the future would be fresh for ever
        return 0 <= now_ns - sensed.t_ns <= self._max_age_ns["state"] and bool(np.isfinite(sensed.state).all())

    def _anchor_if_due(self, tick: int, sensed: Sensed, orders: Orders) -> tuple[bool, bool]:
        """Begin anew from where the robot is: in a new episode, after a reset, and when it is armed after somebody has moved it
        by hand.  Nothing computed before may move the arm.

        Not from a pose so far outside of the range that the nearest command would be a jump.
        """
        mode = self._machine.mode
        is_new = sensed.episode != self.episode and mode < Mode.STOP
        is_reset = orders.reset and mode is Mode.STOP and orders.stop is Cause.NONE and not orders.estop
        pose = sensed.state.astype(np.float64)
        if orders.is_armed and not self._is_engaged and self._motion is not None and mode < Mode.STOP and not is_new:
            # a held arm sags a little: what one tick may move anyway is no reason to begin anew
            self._is_engaged = not self.is_at_rest or self._motion.is_within_a_step(pose)
            is_reset = not self._is_engaged
        if not (is_new or is_reset):
            return False, False
        if not self._limits.has(pose, self._anchor_margin):
            return False, False
        self._is_engaged = orders.is_armed
        self.episode = sensed.episode
        self._motion = Motion(self._limits, self._ramp_ticks, pose, tick)
        self._schedule.clear()
        self._last_reject = Reject.NONE
        return is_new, is_reset

    def _take_in(self, tick: int, now_ns: int, value: Value) -> Reject:
        is_running = self._machine.mode is Mode.RUN
        running_from = self._motion.last if is_running and self._motion is not None else None
        reject, chunk = self._intake.take(value, tick, now_ns, self.episode, running_from)
        if chunk is not None:
            if not is_running:
                self._schedule.clear()  # what was computed before a hold is not mixed into what comes after it
            self._schedule.add(chunk, tick)
        elif reject is Reject.BAD_PREFIX:
            self.delay_ticks = tick - int(value["observation_tick"])
        self._last_reject = reject
        return reject

    def _is_in_reach(self, pose: Vector) -> bool:
        if self._motion is None:
            return False
        target = np.clip(pose, self._limits.lower, self._limits.upper)
        return bool((np.abs(target - self._motion.last) <= self._limits.max_jump).all())

    def _trouble(self, sensed: Sensed | None, health: Health, orders: Orders) -> Cause:
        if (sensed is not None and sensed.episode != self.episode) or (orders.is_armed and not self._is_engaged):
            return Cause.OUT_OF_RANGE  # else its pose would be the anchor by now
        if health.engine_age_ns > self._max_age_ns["engine"]:
            return Cause.ENGINE_LOST
        return Cause.CAMERA if health.camera_age_ns > self._max_age_ns["camera"] else Cause.NONE

    def _move(self, motion: Motion, target: Target | None) -> _Move:
        mode, cause, limits = self._machine.mode, self._machine.cause, self._limits
        is_approaching = mode is Mode.HOLD and cause is Cause.APPROACH
        if target is None or not (mode is Mode.RUN or is_approaching):
            return self._halt(motion)
        max_step = limits.approach_step if is_approaching else limits.max_step
        command, filtered = motion.follow(target.pose, max_step)
        move = _Move(command)
        if mode is Mode.RUN:
            move.target = target
            move.range_clamps, move.step_clamps = mask_to_bits(filtered.ranged), mask_to_bits(filtered.slowed)
            move.acceleration_clamps = mask_to_bits(filtered.smoothed)
        if self._workspace is None:
            return move
        allowed = self._workspace(command)
        if allowed is not None and (allowed != command).any():
            move.command, move.workspace = motion.redirect(allowed, max_step), True
            allowed = self._workspace(move.command)  # the limits may have left it on the way to what was asked for
        if allowed is None:
            self._machine.refuse()
            return _Move(motion.freeze(), workspace=True)
        return move

    def _halt(self, motion: Motion) -> _Move:
        """Brake along the ramp, or at once where the ramp would lead into what the workspace does not allow."""
        if self._machine.mode is Mode.ESTOP:
            return _Move(motion.freeze())
        command = motion.brake()
        if self._workspace is None or (command == motion.last).all():
            return _Move(command)
        allowed = self._workspace(command)
        if allowed is None or (allowed != command).any():
            return _Move(motion.freeze(), workspace=True)
        return _Move(command)

    def _commit(self, tick: int, motion: Motion, move: _Move, reject: Reject, is_anchor: bool, is_live: bool) -> Decision:
        """The last look at a command: a mistake of ours is never sent."""
        command, target = move.command, move.target
        is_broken = self._watch.is_violation(tick, command, is_anchor=is_anchor)
        if is_broken:
            self._machine.trip()
            command, target = motion.last, None
        self._watch.sent(tick, command, is_anchor=is_anchor)
        motion.commit(command)
        number = -1 if target is None else int(target.newest.record["id"])
        is_first = target is not None and number != self._supplier
        if target is not None and is_first:
            self.applied_id, self.delay_ticks = number, tick - int(target.newest.record["observation_tick"])
        is_seam = is_first and self._supplier >= 0
        self._supplier = number
        return Decision(
            mode=self._machine.mode,
            cause=self._machine.cause,
            command=command,
            is_live=is_live,
            reject=reject,
            chunk=None if target is None else target.newest.record,
            row=-1 if target is None else target.newest.row(tick),
            num_blended=0 if target is None else target.num_blended,
            is_seam=is_seam,
            range_clamps=move.range_clamps,
            step_clamps=move.step_clamps,
            acceleration_clamps=move.acceleration_clamps,
            workspace=move.workspace,
            is_anchor=is_anchor,
            is_violation=is_broken,
        )

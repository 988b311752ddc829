"""Where the arm was sent last and how it moved: the memory of the filter, and the three things it can do with a tick.

`follow` a target, `brake` along a ramp, `freeze` as fast as the limits allow.  Each gives a command; `commit` makes it the last.
"""

from __future__ import annotations

import numpy as np

from edgewam.robot_bridge.control.filter import Filtered, bounded, follow
from edgewam.robot_bridge.control.safety import Limits, Vector


class Motion:
    """From an anchor on: the last command, the last step, and the speed from which a ramp began.

    ramp_ticks: a ramp brakes in equal steps over so many ticks, or as many more as the acceleration limit needs.
    """

    def __init__(self, limits: Limits, ramp_ticks: int, pose: Vector, tick: int) -> None:
        self._limits, self._ramp_ticks = limits, ramp_ticks
        self.last = np.clip(pose, limits.lower, limits.upper)
        self._step = np.zeros_like(self.last)
        self._lead: Vector | None = None
        self._ramp_from, self._ramp_left = self._step, 0
        self._tick = tick

    @property
    def is_at_rest(self) -> bool:
        """The last two commands were the same and no ramp is left to go."""
        return self._ramp_left == 0 and not self._step.any()

    def is_within_a_step(self, pose: Vector) -> bool:
        """Whether the last command is no farther from a pose than one tick may move."""
        return bool((np.abs(pose - self.last) <= self._limits.max_step).all())

    def begin(self, tick: int) -> None:
        """A tick begins.  When ticks were skipped the arm has stood meanwhile: nothing is left to brake."""
        if tick > self._tick + 1:
            self._step, self._lead, self._ramp_left = np.zeros_like(self.last), None, 0
        self._tick = tick

    def follow(self, target: Vector, max_step: Vector) -> tuple[Vector, Filtered]:
        """The command towards a finite target [D], at no more than `max_step` per tick."""
        filtered, self._lead = follow(target, self._lead, self.last, self._step, self._limits, max_step)
        self._ramp_left = self._ramp_ticks
        return self._at(filtered.step), filtered

    def brake(self) -> Vector:
        """The next command of a ramp to rest."""
        self._lead = None
        if self._ramp_left == self._ramp_ticks:
            self._ramp_from = self._step
        share = self._ramp_left / (self._ramp_ticks + 1)
        self._ramp_left = max(0, self._ramp_left - 1)
        return self._at(bounded(share * self._ramp_from, self.last, self._step, self._limits))

    def freeze(self) -> Vector:
        """Stand still as soon as the limits allow: at once without an acceleration limit."""
        self._lead, self._ramp_left = None, 0
        return self._at(bounded(np.zeros_like(self.last), self.last, self._step, self._limits))

    def redirect(self, command: Vector, max_step: Vector) -> Vector:
        """The command nearest to another one [D], at no more than `max_step` per tick, that no hard limit forbids."""
        step = np.clip(command - self.last, -max_step, max_step)
        return self._at(bounded(step, self.last, self._step, self._limits))

    def commit(self, command: Vector) -> None:
        """This command is sent."""
        self._step, self.last = command - self.last, command

    def _at(self, step: Vector) -> Vector:
        return np.clip(self.last + step, self._limits.lower, self._limits.upper)

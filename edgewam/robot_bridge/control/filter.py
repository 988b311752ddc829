"""The clamps that every command passes: range, velocity, acceleration, and room to brake.  Pure functions of the last motion.

Motion is counted per tick: a *step* is a command minus the one before, [D].  With an acceleration limit a step may differ from
the last one by `max_change` at most, and it may be only so large that braking at that rate ends before the end of the range.
Those two never contradict each other: whoever could still brake in time a tick ago can do so now by braking.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgewam.robot_bridge.control.safety import Limits, Mask, Vector


@dataclass(frozen=True, eq=False)
class Filtered:
    """A step [D], and the joints whose target was out of range, too fast, or too abrupt (or too near the end to go on)."""

    step: Vector
    ranged: Mask
    slowed: Mask
    smoothed: Mask


def braking_step(room: Vector, max_change: Vector) -> Vector:
    """The largest step [D] from which steps that shrink by `max_change` end within `room` [D] >= 0, itself included.

    n steps s, s - c, ..., s - (n-1) c cover n s - c n (n-1) / 2, and n is the number of positive ones.
    """
    num_steps = np.maximum(1.0, np.ceil((np.sqrt(1.0 + 8.0 * room / max_change) - 1.0) / 2.0))
    step: Vector = room / num_steps + max_change * (num_steps - 1.0) / 2.0
    return step


def step_bounds(last: Vector, last_step: Vector, limits: Limits) -> tuple[Vector, Vector]:
    """The smallest and the largest step [D] that no hard limit forbids, from a command within the range."""
    below, above = np.maximum(last - limits.lower, 0.0), np.maximum(limits.upper - last, 0.0)
    if limits.max_change is None:
        return np.maximum(-limits.max_step, -below), np.minimum(limits.max_step, above)
    low = np.maximum(-limits.max_step, last_step - limits.max_change)
    high = np.minimum(limits.max_step, last_step + limits.max_change)
    return np.maximum(low, -braking_step(below, limits.max_change)), np.minimum(high, braking_step(above, limits.max_change))


def bounded(step: Vector, last: Vector, last_step: Vector, limits: Limits) -> Vector:
    """The step [D] nearest to the wanted one that no hard limit forbids; for braking and for what a workspace asks for."""
    low, high = step_bounds(last, last_step, limits)
    return np.clip(step, low, high)


def follow(
    target: Vector, lead: Vector | None, last: Vector, last_step: Vector, limits: Limits, max_step: Vector
) -> tuple[Filtered, Vector]:
    """The step towards a finite target [D] at no more than `max_step`, and the target within the range: the next tick's `lead`.

    lead: last tick's target within the range, None when nothing was followed then.  With an acceleration limit an error cannot
    be closed in one step without shooting past, so it is closed at a speed that can be braked, on top of the target's own.
    """
    inside = np.clip(target, limits.lower, limits.upper)
    wanted = inside - last
    if limits.max_change is not None:
        moved, error = (0.0, wanted) if lead is None else (inside - lead, lead - last)
        wanted = moved + np.sign(error) * braking_step(np.abs(error), limits.max_change)
    slow = np.clip(wanted, -max_step, max_step)
    step = bounded(slow, last, last_step, limits)
    return Filtered(step, inside != target, slow != wanted, step != slow), inside

"""Variants of kernels, tuned once per process and within a time: later stages, formats and jobs find what earlier ones tuned.

A call that the time did not suffice for runs with its op's first variant, and the figures say how many did.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field

from benchmarks.gpu.kernel_checks import distinct
from benchmarks.gpu.kernel_recipes import Lowered, memory_bytes
from edgewam.kernels.autotune import tune
from edgewam.kernels.choices import Choices
from edgewam.kernels.target import Target, target_of
from edgewam.kernels.variant import Variant


@dataclass
class Tuner:
    """What was tuned so far for one target."""

    target: Target
    by_key: dict[str, Variant | None] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    spent_s: float = 0.0

    def tune(self, lowered: Lowered, budget_s: float) -> int:
        """Tune the calls of a stage that are new, until `budget_s` were spent in this process; returns how many are new."""
        new = {key: call for key, call in distinct(lowered).items() if key not in self.by_key}
        if not new or self.spent_s >= budget_s:
            return len(new)
        start = time.monotonic()
        stage = lowered.with_calls(
            sorted(new.values(), key=lambda call: -memory_bytes(lowered, [call]))
        )  # what weighs most first
        found = tune(stage.recipe, stage.specs(), self.target, "cuda", budget_s - self.spent_s)
        self.spent_s += time.monotonic() - start
        self.by_key |= found.by_key
        self.remarks += found.remarks
        return len(new)

    def choices(self) -> Choices:
        """All choices so far."""
        defaults = Choices.defaults(self.target)
        return Choices(defaults.card, defaults.sm, defaults.triton, dict(self.by_key), tuple(self.remarks))

    def untuned(self, lowered: Lowered) -> int:
        """Kinds of calls of a stage that run with their op's first variant."""
        return sum(key not in self.by_key for key in distinct(lowered))


@functools.cache
def tuner(device: str) -> Tuner:
    """The tuner of this process."""
    return Tuner(target_of(device))

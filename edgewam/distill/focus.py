"""Contexts worth another look: where the teacher's draws lie apart, a student that takes few steps errs most.

Drawn by importance instead of evenly (as prioritised replay draws transitions, Schaul et al. 2016); the noise is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewam.data.windows import num_valid_history
from edgewam.training.windows import Choice, WindowSource

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def spread(noise: Floats, second: Floats, result: Floats, first_step: float) -> Floats:
    """Mean square distance [B] from a draw to what the teacher's first step expects, all of [B, horizon, action_dim].

    From pure noise the velocity points at the mean of all draws (flow matching), so one draw's distance to it tells, by
    itself, how far the draws lie apart.  `second` is the state after that step, which goes `first_step` of the way.
    """
    expected = noise + (second - noise) / first_step
    return np.square(result - expected).mean((1, 2))


@dataclass(frozen=True)
class Focus:
    """Contexts that were seen, and how likely each is to be drawn again (any scale), all [N]."""

    windows: Ints
    offsets: Ints
    spacings: Ints
    history: Ints  # valid history length: a batch holds one
    weights: Floats

    @classmethod
    def of(cls, source: WindowSource, choices: Sequence[Choice], weights: Floats) -> Focus:
        """The contexts of `choices`, in their order."""
        windows = np.concatenate([choice.windows for choice in choices])
        spacings = np.concatenate([np.full(len(choice.windows), choice.spacing) for choice in choices])
        history = num_valid_history(source.layout, source.cache.window_step[windows], spacings)
        return cls(windows, np.concatenate([choice.offsets for choice in choices]), spacings, history, weights)

    def draw(self, size: int, generator: np.random.Generator) -> Choice:
        """One context by weight, then `size` by weight among those of its history length and spacing."""
        weights = self.weights.astype(np.float64)
        first = generator.choice(len(weights), p=weights / weights.sum())
        alike = np.flatnonzero((self.spacings == self.spacings[first]) & (self.history == self.history[first]))
        rows = generator.choice(alike, size, p=weights[alike] / weights[alike].sum())
        return Choice(self.windows[rows], self.offsets[rows], int(self.spacings[first]))

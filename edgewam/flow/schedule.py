"""The shifted noise grid of rectified flow and its inference tables.

sigma in [0, 1] is the noise level (1 = noise), timestep = 1000 * sigma is what the network sees.  Tables are built in
float32 exactly as the released weights were trained and sampled with; the bf16 variant rounds timesteps and deltas,
because the networks of that family saw rounded timesteps (facts/performance.md 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000
DEFAULT_SHIFT = 5.0

TableDtype = Literal["float32", "bf16"]


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Move a noise grid towards high noise: shift*s / (1 + (shift-1)*s).  sigma [...] in [0, 1]."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigma_grid(num_steps: int, shift: float = DEFAULT_SHIFT) -> Tensor:
    """Noise levels [num_steps + 1] from 1 down to exactly 0, float32.

    Raises:
        ValueError: fewer than one step, or a shift that is not positive.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
    if shift <= 0:
        raise ValueError(f"The schedule shift must be positive, got {shift}.")
    return shift_sigma(torch.linspace(1, 0, num_steps + 1, dtype=torch.float32), shift)


@dataclass(frozen=True)
class StepTable:
    """What a sampler needs for every step: `timesteps` [N] in [0, 1000] and `deltas` [N] = sigma_next - sigma (negative)."""

    timesteps: Tensor
    deltas: Tensor

    @property
    def num_steps(self) -> int:
        """N, the number of network evaluations."""
        return len(self.timesteps)


def step_table(num_steps: int, shift: float = DEFAULT_SHIFT, tables: TableDtype = "float32") -> StepTable:
    """Inference table of a plain Euler sampler; values are float32, rounded through bfloat16 when `tables` is "bf16".

    Raises:
        ValueError: an unknown `tables`, or what `sigma_grid` refuses.
    """
    sigma = sigma_grid(num_steps, shift)
    table = StepTable(timesteps=sigma[:-1] * NUM_TRAIN_TIMESTEPS, deltas=sigma[1:] - sigma[:-1])
    if tables == "float32":
        return table
    if tables == "bf16":
        return StepTable(timesteps=table.timesteps.bfloat16().float(), deltas=table.deltas.bfloat16().float())
    raise ValueError(f"Unknown table rounding '{tables}'. Available: float32, bf16.")

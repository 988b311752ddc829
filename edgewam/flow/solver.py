"""Samplers as linear tables: every step is x' = state*x + velocity*v with constants known before the first one.

The network sees `timesteps`; a compiled program receives one row per step and holds no solver code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgewam.flow.schedule import DEFAULT_SHIFT, StepTable, TableDtype, step_table


@dataclass(frozen=True)
class LinearTable:
    """One row per step: `timesteps`, and the coefficients of the state and of the velocity; all float32 [N]."""

    timesteps: Tensor
    state: Tensor
    velocity: Tensor

    @property
    def num_steps(self) -> int:
        """N, the number of network evaluations."""
        return len(self.timesteps)


def euler(table: StepTable) -> LinearTable:
    """The explicit Euler solver: x' = x + (sigma_next - sigma) * v."""
    return LinearTable(timesteps=table.timesteps, state=torch.ones_like(table.deltas), velocity=table.deltas)


def euler_table(num_steps: int, shift: float = DEFAULT_SHIFT, tables: TableDtype = "float32") -> LinearTable:
    """`euler` of the shifted grid with `num_steps` steps."""
    return euler(step_table(num_steps, shift, tables))


def integrate(network: Callable[[Tensor, Tensor], Tensor], noise: Tensor, table: LinearTable) -> list[Tensor]:
    """All states of a sampler, noise first: N + 1 tensors like `noise`.  network(x, timestep []) -> velocity like x."""
    states = [noise]
    rows = (column.to(noise.device) for column in (table.timesteps, table.state, table.velocity))
    for timestep, state, velocity in zip(*rows, strict=True):
        x = states[-1]
        states.append(state * x + velocity * network(x, timestep))
    return states

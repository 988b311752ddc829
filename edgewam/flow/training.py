"""What flow-matching training draws and weighs: noise times, noised samples, targets and the loss weight w(t)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from edgewam.flow.schedule import DEFAULT_SHIFT, NUM_TRAIN_TIMESTEPS, shift_sigma


def draw_timesteps(shape: tuple[int, ...], generator: torch.Generator | None = None, shift: float = DEFAULT_SHIFT) -> Tensor:
    """Timesteps in [0, 1000): uniform before the shift.  float32, on the generator's device (CPU without one)."""
    device = generator.device if generator is not None else torch.device("cpu")
    uniform = torch.rand(shape, generator=generator, device=device, dtype=torch.float32)
    return shift_sigma(uniform, shift) * NUM_TRAIN_TIMESTEPS


def add_noise(clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Sample at noise level timestep/1000: (1 - sigma) * clean + sigma * noise.  timestep broadcasts against clean [...]."""
    sigma = (timestep / NUM_TRAIN_TIMESTEPS).to(clean.dtype)
    return (1 - sigma) * clean + sigma * noise


def velocity_target(clean: Tensor, noise: Tensor) -> Tensor:
    """The flow target noise - clean, which does not depend on the noise level."""
    return noise - clean


@functools.cache
def weight_constants(shift: float = DEFAULT_SHIFT, num_train_timesteps: int = NUM_TRAIN_TIMESTEPS) -> tuple[float, float]:
    """(floor, mean) of the bell exp(-2 ((t-500)/1000)^2) over the shifted training grid, in float64."""
    grid = torch.linspace(1, 0, num_train_timesteps + 1, dtype=torch.float64)[:-1]
    bell = _bell(num_train_timesteps * shift_sigma(grid, shift))
    floor = float(bell.min())
    return floor, float((bell - floor).mean())


def loss_weight(timestep: Tensor, shift: float = DEFAULT_SHIFT) -> Tensor:
    """Training weight w(t): a bell centred at t = 500, zero at t = 0 and t = 1000, of mean 1 over the training grid."""
    floor, mean = weight_constants(shift)
    return (_bell(timestep) - floor) / (mean + 1e-10)


def _bell(timestep: Tensor) -> Tensor:
    return torch.exp(-2 * ((timestep - NUM_TRAIN_TIMESTEPS / 2) / NUM_TRAIN_TIMESTEPS) ** 2)

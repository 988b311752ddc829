"""Real-time chunking by prefix: rows of a chunk that are already decided stay fixed while the others are sampled.

Fixed rows are given to the network clean, at timestep 0, and are restored after every solver step.  `where` is used
throughout, so an all-zero mask changes no bit.
"""

from __future__ import annotations

import torch
from torch import Tensor


def delay_mask(horizon: int, delay_steps: int) -> Tensor:
    """Mask [horizon] bool, true for the first `delay_steps` rows: actions that will have run when the chunk arrives.

    Raises:
        ValueError: a delay outside 0..horizon.
    """
    if not 0 <= delay_steps <= horizon:
        raise ValueError(f"delay_steps must lie in 0..{horizon}, got {delay_steps}.")
    return torch.arange(horizon) < delay_steps


def draw_prefix_rows(shape: tuple[int, ...], max_rows: int, generator: torch.Generator) -> Tensor:
    """How many rows of each chunk are given in training, int64 [...], uniform over 0..max_rows."""
    return torch.randint(max_rows + 1, shape, generator=generator, device=generator.device)


def prefix_mask(rows: Tensor, chunk_size: int) -> Tensor:
    """Mask [..., chunk_size] bool, true for the first `rows` [...] rows."""
    return torch.arange(chunk_size, device=rows.device) < rows[..., None]


def restore_prefix(x: Tensor, prefix: Tensor, mask: Tensor) -> Tensor:
    """Put the fixed rows back.  x and prefix [..., T, A], mask [..., T] bool or 0/1."""
    return torch.where(mask.bool()[..., None], prefix, x)


def prefix_timesteps(timestep: Tensor, mask: Tensor) -> Tensor:
    """Timestep per row [..., T]: 0 for fixed rows, `timestep` [...] for the others."""
    return torch.where(mask.bool(), torch.zeros_like(timestep)[..., None], timestep[..., None])

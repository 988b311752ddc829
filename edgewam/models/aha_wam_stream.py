"""Streaming inference, written plainly: planner refreshes with a rolling memory, and one action chunk at a time.

This is what the released policy computes and what stages, engines and bundles are compared with.  It keeps the memory
as a first-in-first-out list; compiled policies use a ring, because the order of memory entries does not matter.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from edgewam.flow.prefix import prefix_timesteps, restore_prefix
from edgewam.flow.solver import LinearTable, integrate
from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.dit_block import KeyValue


class PlannerMemory:
    """The contexts of the last `slots` refreshes, oldest first; each is a list over layers of keys and values [B, S, A]."""

    def __init__(self, slots: int) -> None:
        self.entries: deque[list[KeyValue]] = deque(maxlen=slots)

    def push(self, context: list[KeyValue]) -> None:
        """Remember a context; the oldest one falls out when the memory is full."""
        self.entries.append(context)

    def joined(self) -> list[KeyValue] | None:
        """Per layer, all remembered keys and values in one sequence; None while empty."""
        if not self.entries:
            return None
        layers = range(len(self.entries[0]))
        return [tuple(torch.cat([entry[i][part] for entry in self.entries], 1) for part in (0, 1)) for i in layers]  # type: ignore[misc]


def prefill(model: AhaWam, latent: Tensor, context: Tensor, frame_id: int, memory: PlannerMemory) -> list[KeyValue]:
    """One planner refresh: read the memory, return this frame's keys and values per layer [B, tokens, A], remember them.

    latent [B, Cz, h, w] of the current image, context [B, L, Dt] text rows, frame_id = control step // rope_stride.
    """
    table = model.video_rope(torch.tensor([frame_id], device=latent.device))
    text = model.planner.text_key_values(context)
    current = model.planner.context(latent.unsqueeze(2), table, text, memory.joined())
    memory.push(current)
    return current


def sample_chunk(
    model: AhaWam,
    noise: Tensor,
    table: LinearTable,
    chunk: int,
    routed: list[KeyValue],
    text: list[KeyValue],
    prefix: Tensor | None = None,
    prefix_mask: Tensor | None = None,
) -> list[Tensor]:
    """All sampler states of chunk number `chunk`, noise first; the last is the normalised chunk [B, T, action_dim].

    noise [B, T, action_dim]; rows of `prefix` [B, T, action_dim] (normalised) with prefix_mask [B, T] set stay fixed:
    the network sees them at timestep 0 and they are restored after every step.
    """
    if prefix is None or prefix_mask is None:
        prefix, prefix_mask = noise, torch.zeros(noise.shape[:2], dtype=torch.bool, device=noise.device)
    index = torch.tensor(chunk, device=noise.device)

    def velocity(x: Tensor, timestep: Tensor) -> Tensor:
        rows = prefix_timesteps(timestep.expand(len(x)), prefix_mask)
        return model.action_velocity(restore_prefix(x, prefix, prefix_mask), rows, index, routed, text)

    return [restore_prefix(x, prefix, prefix_mask) for x in integrate(velocity, noise, table)]

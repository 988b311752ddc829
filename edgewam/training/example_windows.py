"""Batches of the right shapes with random content: what an estimate is made on, before a dataset's latents exist."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edgewam.data.windows import WindowLayout
from edgewam.models.family import Sizes
from edgewam.models.flow_loss import LossBatch
from edgewam.training.windows import Choice


@dataclass
class ExampleWindows:
    """Stands in for a `WindowSource`; every batch has `size` windows with the longest history, which needs most memory."""

    model: Sizes
    layout: WindowLayout
    size: int

    def draw(self, size: int, generator: np.random.Generator, index: int | None = None) -> Choice:
        """`self.size` windows, whatever is asked for."""
        rows = np.arange(self.size)
        return Choice(rows, np.zeros_like(rows), (*self.layout.history_spacings, 1)[0])

    def batch(self, choice: Choice) -> LossBatch:
        """See `WindowSource.batch`; the shapes are the same, nothing is padding."""
        model, layout, b = self.model, self.layout, len(choice.windows)
        latent = (model.latent_dim, model.image_height // 16, model.image_width // 16)
        num_latents, history, chunks = layout.num_latents, layout.num_history, layout.num_chunks
        return LossBatch(
            actions=torch.randn(b, layout.horizon, model.action_dim),
            action_is_pad=torch.zeros(b, layout.horizon, dtype=torch.bool),
            proprio=torch.randn(b, chunks, model.proprio_dim),
            context=torch.randn(b, model.text_len, model.text_dim),
            video_latents=torch.randn(b, latent[0], num_latents, *latent[1:]),
            image_is_pad=torch.zeros(b, layout.num_video_frames, dtype=torch.bool),
            video_frame_ids=torch.arange(num_latents).expand(b, num_latents),
            history_latents=torch.randn(b, history, *latent),
            history_frame_ids=torch.arange(history).expand(b, history),
            history_valid_len=torch.full((b,), history),
            chunk_latents=torch.randn(b, chunks, *latent),
        )

    def describe(self, choice: Choice) -> str:
        """What an error message calls such a batch."""
        return f"{len(choice.windows)} made-up windows"

"""Batches of training windows with cached latents: what the policy's loss and the distillation both read.

Windows start where the latent cache has clips, at a random phase per episode, so that the planner sees every moment of
the task.  A batch holds windows of one history length and is a function of its random generator alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgewam.data.dataset import Dataset
from edgewam.data.stats import DatasetStats
from edgewam.data.windows import WindowLayout, make_windows, num_valid_history
from edgewam.models.family import Sizes
from edgewam.models.flow_loss import LossBatch
from edgewam.models.text import TextEncoder
from edgewam.training.latents import LatentCache, LatentPlan

Ints = npt.NDArray[np.int64]


class Source(Protocol):
    """What a task reads: `draw` chooses windows (a choice is the source's own), `batch` makes them a loss batch."""

    @property
    def layout(self) -> WindowLayout:
        """Of its windows."""

    def draw(self, size: int, generator: np.random.Generator, index: int | None = None) -> Any:
        """Windows of batch number `index`, or from `generator` where the source has no order; `choice.rows(first, last)` are
        some of them."""

    def batch(self, choice: Any) -> LossBatch:
        """The chosen windows."""

    def describe(self, choice: Any) -> str:
        """Which data they are, for messages."""


@dataclass(frozen=True)
class Choice:
    """Which windows a batch holds: rows of the cache's window list, action offsets in control steps, history spacing."""

    windows: Ints
    offsets: Ints
    spacing: int

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.windows)

    def rows(self, first: int, last: int) -> Choice:
        """Some of these windows: what one rank takes of a choice that all ranks draw alike."""
        return Choice(self.windows[first:last], self.offsets[first:last], self.spacing)


@dataclass
class WindowSource:
    """Draws choices over some episodes and turns them into loss batches."""

    dataset: Dataset
    cache: LatentCache
    stats: DatasetStats
    text: TextEncoder
    layout: WindowLayout
    episodes: Sequence[int]

    def __post_init__(self) -> None:
        self._pool = np.flatnonzero(np.isin(self.cache.window_episode, np.asarray(self.episodes)))
        if len(self._pool) == 0:
            raise ValueError("The latent cache holds no window of the episodes to train on.")
        self._words = {task: torch.from_numpy(self.text.encode(task)) for task in self.dataset.tasks}

    @property
    def num_windows(self) -> int:
        """Windows to draw from."""
        return len(self._pool)

    def draw(self, size: int, generator: np.random.Generator, index: int | None = None) -> Choice:
        """One history spacing, one history length (as often as it occurs), then windows of that length and their offsets."""
        # without history no spacing matters, and nothing is drawn
        spacing = int(generator.choice(self.layout.history_spacings)) if self.layout.history_spacings else 1
        steps = self.cache.window_step[self._pool]
        valid = num_valid_history(self.layout, steps, np.full(len(steps), spacing))
        group = self._pool[valid == valid[generator.integers(len(valid))]]
        windows = generator.choice(group, size, replace=len(group) < size)
        # at least the first action is real
        room = self.dataset.lengths[self.cache.window_episode[windows]] - 1 - self.cache.window_step[windows]
        offsets = generator.integers(0, np.minimum(self.layout.max_offset, room) + 1)
        return Choice(windows, offsets.astype(np.int64), spacing)

    def batch(self, choice: Choice) -> LossBatch:
        """Normalised actions and states and float32 latents of the chosen windows."""
        cache, rows = self.cache, choice.windows
        episode, start = cache.window_episode[rows], cache.window_step[rows]
        window = make_windows(self.dataset, self.layout, episode, start, choice.offsets, np.full(len(rows), choice.spacing))
        num_history = window.valid_len
        history = slice(self.layout.num_history - num_history, None)
        first = self._latents(episode[:, None], start[:, None]).transpose(1, 2)
        later = torch.from_numpy(cache.clips[rows].astype(np.float32))
        return LossBatch(
            actions=torch.from_numpy(self.stats.action.forward(window.actions)),
            action_is_pad=torch.from_numpy(window.action_is_pad),
            proprio=torch.from_numpy(self.stats.state.forward(window.proprio)),
            context=torch.stack([self._words[self.dataset.task(int(e))] for e in episode]),
            video_latents=torch.cat([first, later], 2),
            image_is_pad=torch.from_numpy(window.image_is_pad),
            video_frame_ids=torch.from_numpy(window.video_temporal_ids),
            history_latents=self._latents(episode[:, None], window.history_steps[:, history]),
            history_frame_ids=torch.from_numpy(window.history_temporal_ids[:, history]),
            history_valid_len=torch.full((len(rows),), num_history),
            chunk_latents=self._latents(episode[:, None], window.chunk_steps),
        )

    def describe(self, choice: Choice) -> str:
        """Episode, start and offset of the first windows."""
        rows = choice.windows[:4]
        places = zip(self.cache.window_episode[rows], self.cache.window_step[rows], choice.offsets, strict=False)
        text = ", ".join(f"episode {episode} step {step} offset {offset}" for episode, step, offset in places)
        return text + (", ..." if len(choice.windows) > 4 else "")

    def _latents(self, episode: Ints, steps: Ints) -> Tensor:
        """Single-image latents [B, n, C, h, w] at control steps [B, n]."""
        return torch.from_numpy(self.cache.images[self.cache.image_rows(episode, steps)].astype(np.float32))


def latent_plan(
    layout: WindowLayout, model: Sizes, start_stride: int, seed: int, composition: str = "three_cameras"
) -> LatentPlan:
    """The cache that windows of this layout need."""
    frames, stride = layout.num_video_frames, layout.stride
    return LatentPlan(model.image_height, model.image_width, frames, stride, start_stride, seed, composition=composition)

"""Where a policy's training gets its batches from: latents that are cached once, or pictures that are encoded when needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from edgewam.data.dataset import Dataset
from edgewam.data.sampler import WindowSampler
from edgewam.data.stats import DatasetStats
from edgewam.models.text import TextEncoder
from edgewam.models.wan_vae import WanVae
from edgewam.training.frame_source import FrameSource, canvas_for
from edgewam.training.latents import build_cache
from edgewam.training.windows import WindowSource, latent_plan

if TYPE_CHECKING:
    from edgewam.training.policy import PolicyTraining

Source = WindowSource | FrameSource
MEASURED_TOGETHER = 16  # windows of a batch on which a finished policy is measured


def open_sources(
    config: PolicyTraining,
    dataset: Dataset,
    vae: WanVae,
    vae_digest: str,
    stats: DatasetStats,
    text: TextEncoder,
    split: int,
    latents: Path,
    report: Callable[[str], None],
) -> tuple[Source, Source]:
    """Windows of the first `split` episodes to train on, and those of the others.

    Args:
        config: what to train; its `frames` decides.
        dataset: the episodes.
        vae: frozen.
        vae_digest: of its artifact.
        stats: to normalise by.
        text: source of the instructions' embeddings.
        split: how many episodes are trained on.
        latents: cache directory, unused with frames.
        report: gets a line of text per encoded episode.

    Raises:
        EdgewamError: what dataset and cache refuse.
    """
    episodes = range(split), range(split, dataset.num_episodes)
    if config.frames:
        # as released: the image encoder computes in the type of the network's products
        vae = vae.to(config.loop.device, torch.bfloat16 if config.loop.autocast else torch.float32)

        def frames(some: Sequence[int], batch_size: int, num_workers: int) -> FrameSource:
            sampler = WindowSampler(dataset, config.layout, batch_size, config.loop.seed, config.start_stride, some)
            canvas = canvas_for(vae, config.model.image_height, config.model.image_width, config.composition)
            # with one chunk its picture is the planner's own, and nothing looks at it
            return FrameSource(sampler, canvas, vae, stats, text, config.model.num_chunks > 1, num_workers)

        return frames(episodes[0], config.batch_size, config.num_workers), frames(episodes[1], MEASURED_TOGETHER, 0)
    plan = latent_plan(config.layout, config.model, config.start_stride, config.loop.seed)
    cache = build_cache(
        latents, dataset, vae, vae_digest, plan, config.loop.device,
        lambda done, total, left: report(f"latents: episode {done}/{total}, {left:.0f} s left"),
    )  # fmt: skip
    found = [WindowSource(dataset, cache, stats, text, config.layout, some) for some in episodes]
    return found[0], found[1]

"""Where a policy's windows come from: latents that are cached first, or pictures that are decoded and encoded while it trains.

Both have the small interface of `windows.Source`; a task does not know which one it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from edgewam.data.dataset import Dataset
from edgewam.data.sampler import WindowSampler
from edgewam.data.stats import DatasetStats
from edgewam.data.windows import WindowLayout
from edgewam.models.text import TextEncoder
from edgewam.models.wan_vae import WanVae
from edgewam.training.frame_source import FrameSource, canvas_for
from edgewam.training.frames import held_out
from edgewam.training.latents import LatentPlan, build_cache
from edgewam.training.loop import LoopConfig
from edgewam.training.windows import Source, WindowSource

HELD_WINDOWS, HELD_BATCH = 64, 16  # windows that a policy is measured on, in all and at once
HELD_PICTURES = 4  # at once where pictures are read: networks of full size, of which one window takes a gigabyte in float32


@dataclass(frozen=True)
class Sources:
    """Of the episodes to train on, and of those that are kept back for validation."""

    train: Source
    held: Source


def held_batches(frames: bool) -> dict[str, int]:
    """How many held-out batches to measure on, and their size; `frames`: of pictures that are read."""
    size = HELD_PICTURES if frames else HELD_BATCH
    return {"num_batches": HELD_WINDOWS // size, "size": size}


def training_episodes(dataset: Dataset) -> range:
    """The episodes to train on: all but the last few."""
    return range(dataset.num_episodes - held_out(dataset.num_episodes))


def open_sources(
    dataset: Dataset, vae: WanVae, vae_digest: str, plan: LatentPlan, loop: LoopConfig, stats: DatasetStats, text: TextEncoder,
    layout: WindowLayout, report: Callable[[str], None], *, cache: Path | None, batch_size: int, num_workers: int,
    chunk_images: bool,
) -> Sources:  # fmt: skip
    """Cached latents, or pictures where `cache` is None.

    batch_size: of all ranks together.  num_workers: processes that decode ahead.  chunk_images: whether the family uses an image
    per chunk.

    Raises:
        EdgewamError: what dataset and cache refuse.
    """
    if cache is not None:
        return cached_sources(cache, dataset, vae, vae_digest, plan, loop.device, stats, text, layout, report)
    return frame_sources(
        dataset, vae, plan, loop.device, stats, text, layout, batch_size=batch_size, num_workers=num_workers,
        bfloat16=loop.autocast, chunk_images=chunk_images,
    )  # fmt: skip


def cached_sources(
    out: Path, dataset: Dataset, vae: WanVae, vae_digest: str, plan: LatentPlan, device: str, stats: DatasetStats,
    text: TextEncoder, layout: WindowLayout, report: Callable[[str], None],
) -> Sources:  # fmt: skip
    """Fill the cache `out` where it is not full, and read from it.

    Raises:
        EdgewamError: what dataset and cache refuse.
    """
    cache = build_cache(
        out, dataset, vae, vae_digest, plan, device,
        lambda done, total, left: report(f"latents: episode {done}/{total}, {left:.0f} s left"),
    )  # fmt: skip
    train = training_episodes(dataset)
    kept = range(len(train), dataset.num_episodes)
    return Sources(*(WindowSource(dataset, cache, stats, text, layout, episodes) for episodes in (train, kept)))


def frame_sources(
    dataset: Dataset, vae: WanVae, plan: LatentPlan, device: str, stats: DatasetStats, text: TextEncoder, layout: WindowLayout,
    *, batch_size: int, num_workers: int, bfloat16: bool, chunk_images: bool = True,
) -> Sources:  # fmt: skip
    """Read pictures; nothing is stored.  The VAE moves to `device`, in the type of the products where that is bfloat16.

    batch_size: of all ranks together.  num_workers: processes that decode ahead.  chunk_images: whether the family uses an image
    per chunk.
    """
    vae = vae.to(device, torch.bfloat16 if bfloat16 else torch.float32)
    canvas = canvas_for(vae, plan.height, plan.width, plan.composition)
    train = training_episodes(dataset)
    kept = range(len(train), dataset.num_episodes)
    samplers = (
        WindowSampler(dataset, layout, size, plan.seed, plan.start_stride, list(episodes))
        for size, episodes in ((batch_size, train), (HELD_PICTURES, kept))
    )
    found = [
        FrameSource(sampler, canvas, vae, stats, text, chunk_images, workers)
        for sampler, workers in zip(samplers, (num_workers, 0), strict=True)
    ]
    return Sources(*found)

"""The plan of `train_vae`: reading the pictures and training.  Inputs are opened and checked as the training would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from edgewam.core.estimate import Duration, StepPlan
from edgewam.data.dataset import Dataset
from edgewam.models import checkpoints
from edgewam.training.estimate import BatchKind, duration, process_parts, stored_bytes, training_cost
from edgewam.training.frames import FrameSet, held_out
from edgewam.training.vae import VaeTask, VaeTraining
from edgewam.training.weights import load_vae


def estimate_vae(config: VaeTraining, out: Path) -> list[StepPlan]:
    """What `train_vae(config, out)` is going to do and take; nothing is written.

    Raises:
        EdgewamError: what `train_vae` would refuse at its start.
    """
    work = out.parent / f"{out.name}.training"
    if config.loop.threads is not None:
        torch.set_num_threads(config.loop.threads)
    dataset = Dataset.open(config.dataset)
    before = process_parts(dataset)
    probing = config.probe_weight > 0
    if probing:
        dataset.environment_states(0)  # refused here rather than after the pictures
    task = VaeTask(config, _example_frames(config), _example_target(config) if probing else None, dataset.digest)
    if config.init_from is not None:
        start, _ = load_vae(config.init_from)
        checkpoints.fit(task.vae, start.state_dict(), f"'{config.init_from}'")
    further = [task.reference.vae] if task.reference else []
    if task.reference:
        task.reference.start(task.vae)
    cost = training_cost(task, config.loop, _kinds(config), further)
    time, work_text = duration(cost, config.loop, work)
    split = dataset.num_episodes - held_out(dataset.num_episodes)
    most = int(np.ceil(dataset.lengths / config.stride).max())
    frames = min(int(np.ceil(dataset.lengths[:split] / config.stride).sum()), config.max_frames + most)
    pictures = {"pictures": frames * config.height * config.width * 3}
    reading = {**before, "pictures, being joined": 2 * pictures["pictures"]}
    places = [config.dataset, *(p for p in (config.init_from, config.reproduce) if p)]
    vae = stored_bytes(task.vae.state_dict(), config.weights_dtype)
    return [
        StepPlan(
            name="train",
            inputs=tuple(map(str, places)),
            outputs=(str(out), str(work)),
            work=f"{work_text}, on {frames} pictures",
            duration=Duration(time.seconds, f"{time.source}; reading the pictures is not counted"),
            memory={"reading pictures": reading, **cost.memory(before | pictures)},
            disk={"checkpoint": cost.checkpoint, "VAE": vae},
            disk_extra=cost.checkpoint,
            notes=cost.notes,
        )
    ]


def _kinds(config: VaeTraining) -> list[BatchKind]:
    """Batches of single pictures and, every `clip_every`, of clips in turn."""

    def rows(frames: int, size: int) -> np.ndarray:
        return np.tile(np.arange(frames), (size, 1))

    clips = config.batch_clips
    share = 1.0 / config.clip_every if clips else 0.0
    kinds = [BatchKind(1.0 - share, config.batch_images, lambda n: rows(1, n))]
    kinds += [BatchKind(share / len(clips), count, lambda n, t=frames: rows(t, n)) for frames, count in clips]  # type: ignore[misc]
    return kinds


def _example_frames(config: VaeTraining) -> FrameSet:
    count = max([1, *(frames for frames, _ in config.batch_clips)])
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, config.height, config.width, 3), np.uint8)
    return FrameSet(images, np.zeros(count, np.int64), np.arange(count), None)


def _example_target(config: VaeTraining) -> np.ndarray:
    count = max([1, *(frames for frames, _ in config.batch_clips)])
    return np.zeros((count, len(config.probe_columns)), np.float32)

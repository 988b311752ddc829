"""Composed camera canvases of a dataset in memory: what the VAE is trained on.

One frame per `stride` control steps from a random phase of each episode, so that neighbours in time form the clips that
the planner will see.  Episodes are taken evenly over the dataset until `max_frames` are held (92 kB each at 192x160).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewam.core.observation import compose_images, composition_named
from edgewam.data.dataset import Dataset
from edgewam.data.schema import Images


def compose_episode(
    dataset: Dataset,
    episode: int,
    steps: npt.NDArray[np.int64],
    height: int,
    width: int,
    composition: str = "three_cameras",
) -> Images:
    """Canvases uint8 [n, height, width, 3] of one episode at control steps [n]."""
    cameras = composition_named(composition).chosen(dataset.cameras).values()
    views = {camera: dataset.frames(episode, camera, steps) for camera in cameras}
    return np.stack(
        [compose_images({name: view[i] for name, view in views.items()}, height, width, composition) for i in range(len(steps))]
    )


def held_out(num_episodes: int) -> int:
    """How many episodes at the end of a dataset are kept for validation: 5 %, at least one if there are two."""
    return min(num_episodes - 1, max(1, round(0.05 * num_episodes)))


@dataclass(frozen=True)
class FrameSet:
    """Canvases uint8 [N, H, W, 3] with their episode [N], control step [N] and privileged state [N, E] (or None)."""

    images: Images
    episode: npt.NDArray[np.int64]
    step: npt.NDArray[np.int64]
    environment: npt.NDArray[np.float32] | None

    @staticmethod
    def load(
        dataset: Dataset,
        episodes: Sequence[int],
        size: tuple[int, int],
        stride: int,
        max_frames: int,
        seed: int,
        environment: bool,
        composition: str = "three_cameras",
    ) -> FrameSet:
        """Decode and compose.  Fails as the dataset does (missing camera, damaged video, no environment state)."""
        generator = np.random.default_rng([seed, len(episodes)])
        images: list[Images] = []
        places: list[npt.NDArray[np.int64]] = []
        states: list[npt.NDArray[np.float32]] = []
        total = 0
        for episode in generator.permutation(np.asarray(episodes)):
            hold = dataset.fps // dataset.camera_hz
            phase = hold * int(generator.integers(max(1, stride // hold)))
            steps = np.arange(phase, dataset.lengths[episode], stride, dtype=np.int64)
            if len(steps) == 0:
                continue
            images.append(compose_episode(dataset, int(episode), steps, *size, composition))
            places.append(np.stack([np.full(len(steps), episode), steps], 1))
            if environment:
                states.append(dataset.environment_states(int(episode))[steps])
            total += len(steps)
            if total >= max_frames:
                break
        place = np.concatenate(places)
        return FrameSet(np.concatenate(images), place[:, 0], place[:, 1], np.concatenate(states) if environment else None)

    def clip_starts(self, length: int) -> npt.NDArray[np.int64]:
        """Rows from which `length` consecutive rows belong to one episode."""
        last = np.arange(len(self.episode) - length + 1)
        return last[self.episode[last] == self.episode[last + length - 1]]

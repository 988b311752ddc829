"""Frames that gates look at: an observation with the instruction it belongs to, for policies that know several tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import ContractError
from edgewam.core.records import Observation
from edgewam.data.dataset import Dataset


@dataclass(frozen=True)
class Frame:
    """What a policy sees, and what it is told to do there."""

    observation: Observation
    prompt: str


def dataset_frames(dataset: Dataset, num_frames: int, seed: int = 0) -> list[Frame]:
    """Frames drawn uniformly over episodes and control steps, the same ones for the same seed.

    Raises:
        ContractError: fewer than one frame asked for.
    """
    if num_frames < 1:
        raise ContractError(f"Validation needs at least one frame, got {num_frames}.")
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(num_frames):
        episode = int(rng.integers(dataset.num_episodes))
        tick = int(rng.integers(dataset.lengths[episode]))
        images = {name: dataset.frames(episode, name, [tick])[0] for name in dataset.cameras}
        frames.append(Frame(Observation(images, dataset.states(episode)[tick], tick), dataset.task(episode)))
    return frames


class FrameSampler:
    """A policy as the `Sampler` of gate 2: every frame is the first of an episode with its own instruction."""

    def __init__(self, policy: Any, prompt: str | None = None) -> None:
        """policy: see `robot_bridge.policy.Policy`, with `sample`.  prompt: instead of the frames' own."""
        self.policy, self.prompt = policy, prompt
        self._current: str | None = None

    def __call__(self, frame: Frame, noise: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Actions [chunk, D] in normalised units."""
        prompt = self.prompt or frame.prompt
        if prompt != self._current:
            self.policy.reset(prompt, 0)
            self._current = prompt
        actions: npt.NDArray[Any] = self.policy.sample(frame.observation, noise)
        return actions

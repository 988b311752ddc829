"""The LeRobot policy type `edgewam`: tensors of a batch in, rows of a bundle's action chunks out.

It has no parameters: the network is a compiled bundle, opened at the first observation.  Real-time chunking follows LeRobot's
call (`inference_delay`, `prev_chunk_left_over`) in the form that was trained: given rows are kept, nothing is guided.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_edgewam.configuration_edgewam import EdgewamConfig
from lerobot_policy_edgewam.engines import Engine, open_engine

STATE, IMAGES = "observation.state", "observation.images."


class EdgewamPolicy(PreTrainedPolicy):
    """One robot, one episode at a time: batches have one element."""

    config_class = EdgewamConfig
    name = "edgewam"

    def __init__(self, config: EdgewamConfig, **ignored: Any) -> None:
        """`ignored`: what LeRobot's factory hands to every policy (dataset statistics, metadata); a bundle has its own."""
        super().__init__(config)
        self._engine: Engine | None = None
        self._num_episodes = 0
        self.reset()

    def reset(self) -> None:
        """Begin an episode at the next observation."""
        self._rows: deque[Tensor] = deque()
        self._steps = 0
        self._begin_s = 0.0  # of the first chunk
        self._newest_tick = 0
        self._prompt: str | None = None

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **options: Any) -> Tensor:
        """The action of this control step [1, D]; a new chunk is asked for every `n_action_steps` calls."""
        if not self._rows:
            chunk = self._chunk(batch, self._steps, **options)[0]
            if len(chunk) < self.config.n_action_steps:
                raise ValueError(
                    f"n_action_steps is {self.config.n_action_steps}, but a chunk of this bundle has {len(chunk)} rows. "
                    "Choose fewer."
                )
            self._rows.extend(chunk[: self.config.n_action_steps])
        self._steps += 1
        return self._rows.popleft()[None]

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **options: Any) -> Tensor:
        """A chunk [1, rows, D] whose first row belongs to now: control steps count by the clock, from the first chunk on.

        inference_delay, prev_chunk_left_over: see `supports_rtc`.
        """
        elapsed_s = 0.0 if self._prompt is None else time.monotonic() - self._begin_s
        return self._chunk(batch, max(int(elapsed_s * self.config.fps), self._newest_tick), **options)

    def supports_rtc(self) -> bool:
        """Whether the bundle was trained with action prefixes, so that the first `inference_delay` rows may be given."""
        return self._opened().longest_prefix > 0

    def get_optim_params(self) -> dict[str, Any]:
        """Nothing to optimise."""
        return {}

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any] | None]:
        """Bundles are not trained here."""
        raise NotImplementedError("An edgewam bundle is not trained by LeRobot. Use edgewam train, distill and compile.")

    def _opened(self) -> Engine:
        if self._engine is None:
            self._engine = open_engine(self.config)
        return self._engine

    def _chunk(
        self,
        batch: dict[str, Any],
        tick: int,
        *,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,  # of the guided form: how far its pull reaches; a prefix has no such number
    ) -> Tensor:
        prefix = None
        if inference_delay and prev_chunk_left_over is not None:
            if not self.supports_rtc():
                raise ValueError(
                    "This bundle was not trained with action prefixes, so real-time chunking would break its actions. "
                    "Switch RTC off, or train with prefixes."
                )
            if inference_delay > (longest := self._opened().longest_prefix):
                raise ValueError(
                    f"A delay of {inference_delay} steps is more than this bundle was trained for ({longest}). "
                    "Use a faster bundle, or switch RTC off."
                )
            left_over = prev_chunk_left_over[0] if prev_chunk_left_over.ndim == 3 else prev_chunk_left_over
            prefix = np.ascontiguousarray(left_over[:inference_delay].cpu().numpy(), np.float32)
        images, state = self._looked_at(batch)
        engine = self._opened()
        if self._prompt is None:
            self._prompt = self._instruction(batch)
            engine.reset(self._prompt, self.config.seed + self._num_episodes)
            self._num_episodes += 1
            self._begin_s = time.monotonic()
        self._newest_tick = tick
        actions = np.array(engine.infer(images, state, tick, prefix), np.float32)  # a copy: the engine keeps its buffers
        return torch.from_numpy(actions)[None].to(self.config.device)

    def _looked_at(self, batch: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """Images uint8 [H, W, 3] by the bundle's camera names, and the state float32 [D]."""
        images = {}
        for key, value in batch.items():
            if key.startswith(IMAGES):
                name = key.removeprefix(IMAGES)
                images[self.config.cameras.get(name, name)] = to_image(_only(value, key, 3))
        if STATE not in batch or not images:
            raise ValueError(f"A batch needs {STATE} and {IMAGES}<camera>; this one has {', '.join(sorted(batch))}.")
        return images, np.ascontiguousarray(_only(batch[STATE], STATE, 1).cpu().numpy(), np.float32)

    def _instruction(self, batch: dict[str, Any]) -> str:
        task = self.config.prompt if self.config.prompt is not None else batch.get("task")
        if isinstance(task, list | tuple) and len(task) == 1:
            task = task[0]
        if not isinstance(task, str):
            raise ValueError(f"No instruction: give --policy.prompt, or one task with each batch (it has {task!r}).")
        return task


def to_image(image: Tensor) -> Any:
    """LeRobot's float [3, H, W] in 0..1 (or uint8 of the same layout) -> uint8 [H, W, 3]."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"A camera image must be [3, H, W], got {list(image.shape)}.")
    if image.dtype != torch.uint8:
        low, high = float(image.min()), float(image.max())
        if not 0.0 <= low <= high <= 1.0:  # also refuses NaN
            raise ValueError(f"Camera images must be 0..1, got {low:.3g}..{high:.3g}: do not normalise them.")
        image = (image.float() * 255.0).round().to(torch.uint8)
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())


def _only(value: Tensor, name: str, num_axes: int) -> Tensor:
    if value.ndim == num_axes + 1:
        if len(value) != 1:
            raise ValueError(f"'{name}' has a batch of {len(value)}; this policy holds one episode, give it one at a time.")
        value = value[0]
    if value.ndim != num_axes:
        raise ValueError(f"'{name}' must have {num_axes} axes and at most a batch axis, got {list(value.shape)}.")
    return value

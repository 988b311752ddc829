"""The released computation as one CUDA graph per chunk: from page-locked inputs to actions on the host."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.gpu_clock import capture, synchronize
from benchmarks.gpu.random_policy import Inputs
from benchmarks.gpu.upstream import UpstreamEager
from edgewam.runtime.memory import Array


class ReleasedGraph:
    """`act` of a released policy for one step count, captured; on a processor it runs as it is."""

    def __init__(self, policy: UpstreamEager, text: Tensor, chunk: int, steps: int) -> None:
        config, self._device = policy.model.config, str(policy.device)
        pinned = self._device != "cpu"
        self._image = torch.zeros(3, config.image_height, config.image_width, dtype=torch.uint8, pin_memory=pinned)
        self._state = torch.zeros(1, config.proprio_dim, dtype=policy.dtype, pin_memory=pinned)
        self._noise = torch.zeros(1, config.chunk_size, config.action_dim, dtype=policy.dtype, pin_memory=pinned)
        self._actions = torch.zeros(config.chunk_size, config.action_dim, pin_memory=pinned)
        hosts = (self._image, self._state, self._noise)
        on_device = [torch.zeros_like(host, device=policy.device) for host in hosts]
        table = policy.table(steps)

        def body() -> None:
            for target, host in zip(on_device, hosts, strict=True):
                target.copy_(host, non_blocking=True)
            image, state, noise = on_device
            self._actions.copy_(policy.sample(image, state, text, noise, chunk, table), non_blocking=True)

        self._replay = capture(body, self._device)

    def __call__(self, inputs: Inputs) -> Array:
        """Normalised actions [T, action_dim]."""
        self._image.copy_(inputs.image)
        self._state.copy_(inputs.proprio)
        self._noise.copy_(inputs.noise)
        self._replay()
        synchronize(self._device)
        return self._actions.numpy().copy()

"""A training task that takes microseconds: fit a small network to a fixed function, with loss noise and a buffer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgewam.training.optimizers import ParameterGroup, split_muon


class ToyTask:
    """Regression of sin(x) by a two-layer network; `bad_batch` turns that batch into NaN."""

    def __init__(self, bad_batch: int | None = None) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.BatchNorm1d(16), nn.Linear(16, 1))
        self.identity: Mapping[str, Any] = {"task": "toy"}
        self.bad_batch = bad_batch

    def parameter_groups(self) -> list[ParameterGroup]:
        return split_muon(self.module.named_parameters(), ["0.weight", "0.bias"], muon_lr=0.02, adamw_lr=1e-2, weight_decay=1e-2)

    def batch(self, index: int, generator: np.random.Generator) -> tuple[int, Tensor]:
        x = torch.from_numpy(generator.standard_normal((32, 2), dtype=np.float32))
        return index, x * float("nan") if index == self.bad_batch else x

    def loss(self, batch: tuple[int, Tensor], generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        _, x = batch
        noise = 0.05 * torch.randn(x.shape, generator=generator)
        error = self.module(x + noise)[:, 0].float() - torch.sin(x[:, 0])
        return error.square().mean(), {"mean_error": error.mean().detach()}

    def describe(self, batch: tuple[int, Tensor]) -> str:
        return f"toy rows of batch {batch[0]}"

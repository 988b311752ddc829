"""A training task that takes microseconds: fit a small network to a fixed function, with loss noise and a buffer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgewam.training.loop import Loss
from edgewam.training.optimizers import ParameterGroup, split_muon
from edgewam.training.ranks import WHOLE, Share


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

    def blocks(self) -> list[nn.Module]:
        return []

    def loss(self, batch: tuple[int, Tensor], generator: torch.Generator, share: Share = WHOLE) -> Loss:
        _, x = batch
        noise = 0.05 * torch.randn(x.shape, generator=generator)
        rows = share.rows(len(x))
        error = self.module((x + noise)[rows])[:, 0].float() - torch.sin(x[rows, 0])
        return Loss(error.square().mean(), {"mean_error": error.mean().detach()}, len(error))

    def describe(self, batch: tuple[int, Tensor]) -> str:
        return f"toy rows of batch {batch[0]}"


class RankToy(ToyTask):
    """The same regression by blocks, without statistics over the batch, so that its rows may lie on several ranks.

    7 rows and widths of 7 and 13 divide by neither two nor four; a block is also entered by another way than forward.
    bad_row: (batch, row) whose input is NaN.  matrices: train them with Muon, else everything with AdamW.
    """

    def __init__(self, rows: int = 7, bad_row: tuple[int, int] | None = None, matrices: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(2, 7), nn.ModuleList(_Block() for _ in range(2)), nn.Linear(7, 1))
        self.rows, self.bad_row, self.matrices = rows, bad_row, matrices

    def parameter_groups(self) -> list[ParameterGroup]:
        named = list(self.module.named_parameters())
        matrices = [name for name, _ in named if self.matrices and name.startswith("1.")]
        return split_muon(named, matrices, muon_lr=0.02, adamw_lr=1e-2, weight_decay=1e-2)

    def blocks(self) -> list[nn.Module]:
        return list(self.module[1])  # type: ignore[index, arg-type]

    def batch(self, index: int, generator: np.random.Generator) -> tuple[int, Tensor]:
        x = torch.from_numpy(generator.standard_normal((self.rows, 2), dtype=np.float32))
        if self.bad_row is not None and self.bad_row[0] == index:
            x[self.bad_row[1]] = float("nan")
        return index, x

    def loss(self, batch: tuple[int, Tensor], generator: torch.Generator, share: Share = WHOLE) -> Loss:
        _, x = batch
        noise = 0.05 * torch.randn(x.shape, generator=generator)
        rows = share.rows(len(x))
        h = self.module[0]((x + noise)[rows])  # type: ignore[index]
        offsets = [block.offset(h) for block in self.blocks()]  # type: ignore[operator]
        for block, offset in zip(self.blocks(), offsets, strict=True):
            h = block(h, offset)
        error = self.module[2](h)[:, 0].float() - torch.sin(x[rows, 0])  # type: ignore[index]
        return Loss(error.square().mean(), {"mean_error": error.mean().detach()}, len(error))


class _Block(nn.Module):
    ENTRIES = ("offset",)

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.back, self.side = nn.Linear(7, 13), nn.Linear(13, 7), nn.Linear(7, 7)

    def offset(self, h: Tensor) -> Tensor:
        return self.side(h)

    def forward(self, h: Tensor, offset: Tensor) -> Tensor:
        return h + self.back(torch.tanh(self.wide(h))) + offset

"""How good a policy is on held-out windows: its losses, and the distance of what it samples to the demonstration."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgewam.flow.schedule import TableDtype
from edgewam.flow.solver import euler_table
from edgewam.models.family import sizes, trainable
from edgewam.models.flow_loss import LossBatch
from edgewam.training.windows import Source


@torch.inference_mode()
def measure_policy(
    family: str,
    model: nn.Module,
    held: Source,
    seed: int,
    num_batches: int = 4,
    size: int = 16,
    tables: TableDtype = "float32",
) -> dict[str, Any]:
    """Losses and sampling error on held-out windows with fixed noise.

    `action_rms` is the distance of the first chunk of a 10-step sample to the demonstration in normalised units; it cannot
    reach zero where the demonstration itself is free (timing, execution noise), so closed loop is what judges a policy.
    `tables`: how it rounds timesteps where it acts.
    """
    model.eval()
    module, config, device = trainable(family), sizes(model), next(model.parameters()).device
    values: dict[str, list[float]] = {"action_loss": [], "video_loss": [], "action_rms": []}
    for index in range(num_batches):
        generator = torch.Generator().manual_seed(seed * 1000 + index)
        batch = held.batch(held.draw(size, np.random.default_rng([seed, index, 5]))).to(device)
        noise = module.draw_noise(batch, generator, 1, config.train_shift).rounded(tables)
        losses = module.training_loss(model, batch, noise)
        error = _sampling_error(module, model, batch, generator, tables)
        for name, value in (("action_loss", losses.action), ("video_loss", losses.video), ("action_rms", error)):
            values[name].append(float(value))
    return {name: float(np.mean(found)) for name, found in values.items()} | {"held_out_windows": num_batches * size}


def _sampling_error(
    module: ModuleType, model: nn.Module, batch: LossBatch, generator: torch.Generator, tables: TableDtype
) -> Tensor:
    """Root mean square of a 10-step sample's first chunk against the demonstration, normalised units."""
    noise, config = torch.randn(batch.actions.shape, generator=generator).to(batch.actions.device), sizes(model)
    table = euler_table(10, config.shift, tables)
    found = module.sample_horizon(model, module.condition(model, batch), noise, table)[-1]
    first = slice(0, config.chunk_size)
    error = (found - batch.actions)[:, first].square().mean(-1)
    valid = ~batch.action_is_pad[:, first]
    root: Tensor = ((error * valid).sum() / valid.sum()).sqrt()
    return root

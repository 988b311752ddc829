"""How near a student is to its teacher: both sample the same windows from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgewam.data.dataset import Dataset
from edgewam.data.schema import ACTION
from edgewam.data.stats import DatasetStats
from edgewam.flow.schedule import TableDtype
from edgewam.flow.solver import euler_table
from edgewam.models.family import sizes, trainable
from edgewam.training.windows import Source

JUDGED_STEPS = (1, 2, 4)  # of a student that may be sampled with any number


def action_names(dataset: Dataset) -> list[str]:
    """What a dataset calls the dimensions of its actions; numbers where it does not say."""
    names = dataset.features[ACTION].get("names")
    if isinstance(names, dict) and len(names) == 1:  # as other programs write it: {"motors": [...]}
        (names,) = names.values()
    if not isinstance(names, list) or len(names) != dataset.action_dim:
        return [f"action_{number}" for number in range(dataset.action_dim)]
    return [str(name) for name in names]


@torch.inference_mode()
def fidelity(
    family: str,
    teacher: nn.Module,
    student: nn.Module,
    held: Source,
    stats: DatasetStats,
    arm: list[str],
    names: list[str],
    steps: Sequence[int] = JUDGED_STEPS,
    seed: int = 0,
    num_batches: int = 4,
    size: int = 16,
    tables: TableDtype = "float32",
) -> dict[str, Any]:
    """RMS distance to the teacher's 16- and 10-step results from the same noise, on held-out windows.

    Per sampler ("student_2", "undistilled_2", ... = steps, with the shift of its network) and reference: over all dimensions in
    normalised units, and over the joints `arm` in rad.  Padded actions do not count.  `tables`: as both networks act.
    """
    module = trainable(family)
    device = next(teacher.parameters()).device
    columns = [names.index(name) for name in arm]
    radian = torch.from_numpy(stats.action.std)[columns].to(device)
    squares: dict[str, list[float]] = {}
    for index in range(num_batches):
        batch = held.batch(held.draw(size, np.random.default_rng([seed, index, 6]))).to(device)
        noise = torch.randn(batch.actions.shape, generator=torch.Generator().manual_seed(seed * 1000 + index)).to(device)
        of_teacher = module.condition(teacher, batch)
        of_student = module.condition(student, batch) if module.OWN_CONDITIONING else of_teacher
        valid = ~batch.action_is_pad

        def sample(model: nn.Module, conditioning: Any, count: int) -> Tensor:
            table = euler_table(count, sizes(model).shift, tables)
            states: list[Tensor] = module.sample_horizon(model, conditioning, noise, table)  # noqa: B023 (used within the turn)
            return states[-1]

        found = {f"undistilled_{count}": sample(teacher, of_teacher, count) for count in steps}
        found |= {f"student_{count}": sample(student, of_student, count) for count in steps}
        for reference in (16, 10):
            goal = sample(teacher, of_teacher, reference)
            for name, value in found.items():
                error = (value - goal)[valid]
                key = f"{name}_to_{reference}"
                squares.setdefault(f"{key}_normalised", []).append(float(error.square().mean()))
                squares.setdefault(f"{key}_rad", []).append(float((error[:, columns] * radian).square().mean()))
    return {
        "rms": {name: float(np.sqrt(np.mean(values))) for name, values in squares.items()},
        "sampler_steps": list(steps),
        "held_out_windows": num_batches * size,
    }

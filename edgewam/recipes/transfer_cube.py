"""The recipe of the shipped policy `small` on ALOHA TransferCube: what made the weights in `edgewam/assets/small`.

One function per hardware; a variant derives from another with `dataclasses.replace`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgewam.distill.ode import OdeDistillation
    from edgewam.training.aha_wam import PolicyTraining
    from edgewam.training.vae import VaeTraining


@dataclass(frozen=True)
class Demonstrations:
    """What to collect: `num_episodes` successful ones of the scripted expert, seeds in order from `first_seed`."""

    num_episodes: int = 400
    first_seed: int = 300_001
    style: str = "plain"


@dataclass(frozen=True)
class Recipe:
    """Every step from nothing to a student.  Directories: dataset, vae, teacher, student below one working directory."""

    demonstrations: Demonstrations
    vae: VaeTraining
    policy: PolicyTraining
    distillation: OdeDistillation


def small_cpu(work: Path) -> Recipe:
    """TransferCube on two CPU cores: 13 min of demonstrations, then one hour of training in all."""
    from edgewam.distill.ode import OdeDistillation
    from edgewam.training.aha_wam import PolicyTraining
    from edgewam.training.vae import VaeTraining

    dataset, vae, teacher = work / "dataset", work / "vae", work / "teacher"
    latents = work / "latents"
    return Recipe(
        Demonstrations(),
        VaeTraining(dataset=dataset, weights_dtype="float16"),
        PolicyTraining(dataset=dataset, vae=vae, latents=latents, weights_dtype="float16"),
        OdeDistillation(teacher=teacher, dataset=dataset, latents=latents, weights_dtype="float16"),
    )

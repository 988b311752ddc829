"""The recipe of the shipped policy `small` on ALOHA TransferCube: what made the weights in `edgewam/assets/small`.

One function per hardware; a variant derives from another with `dataclasses.replace`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgewam.distill.ode import OdeDistillation
    from edgewam.training.aha_wam import PolicyTraining
    from edgewam.training.vae import VaeTraining


@dataclass(frozen=True)
class Recipe:
    """Every step from nothing to a student.  Directories: dataset, vae, start, teacher, student below one working directory.

    policy: from random weights.  refinement: from those, with the rates of a restart; its result is the teacher.
    """

    vae: VaeTraining
    policy: PolicyTraining
    refinement: PolicyTraining
    distillation: OdeDistillation


def small_cpu(work: Path) -> Recipe:
    """TransferCube on two CPU cores: two hours of training in all, on what `edgewam collect` records."""
    from edgewam.distill.ode import OdeDistillation
    from edgewam.training.aha_wam import PolicyTraining
    from edgewam.training.vae import VaeTraining

    dataset, vae, start, teacher = (work / name for name in ("dataset", "vae", "start", "teacher"))
    latents = work / "latents"
    policy = PolicyTraining(dataset=dataset, vae=vae, latents=latents, weights_dtype="float16")
    refinement = replace(
        policy,
        init_from=start,
        batch_size=40,  # other batches than those of the first run, whose order has the same seed
        action_draws=2,  # twice the action targets for a sixth more time
        muon_lr=0.012,
        adamw_lr=6e-4,
        loop=replace(policy.loop, minutes=48.0, warmup_steps=50),
    )
    return Recipe(
        vae=VaeTraining(dataset=dataset, weights_dtype="float16"),
        policy=policy,
        refinement=refinement,
        distillation=OdeDistillation(teacher=teacher, dataset=dataset, latents=latents, weights_dtype="float16"),
    )

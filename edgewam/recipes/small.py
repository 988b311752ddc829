"""The recipe of `small` on the simulated ALOHA: three tasks in one checkpoint, on two CPU cores.

What really made the shipped weights, task by task: edgewam/assets/small/README.md.
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
class Demonstrations:
    """What to collect: `num_episodes` successful ones of the scripted expert of `task`, seeds in order from `first_seed`."""

    task: str
    num_episodes: int
    first_seed: int


@dataclass(frozen=True)
class Recipe:
    """Every step from nothing to a student.  Directories: dataset, vae, start, teacher, student below one working directory.

    demonstrations: of all tasks, joined to one dataset.  policy: from random weights.  refinement: from those, with the rates
    of a restart; its result is the teacher.
    """

    demonstrations: tuple[Demonstrations, ...]
    vae: VaeTraining
    policy: PolicyTraining
    refinement: PolicyTraining
    distillation: OdeDistillation


def small_cpu(work: Path) -> Recipe:
    """Three tasks on two CPU cores."""
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
        muon_lr=0.015,
        adamw_lr=8e-4,
        loop=replace(policy.loop, minutes=60.0, warmup_steps=60),
    )
    distillation = OdeDistillation(teacher=teacher, dataset=dataset, latents=latents, weights_dtype="float16")
    distillation = replace(
        distillation,
        trajectories=replace(distillation.trajectories, num_batches=128),
        loop=replace(distillation.loop, minutes=16.0),
    )
    return Recipe(
        demonstrations=(
            Demonstrations("transfer_cube", 420, 310_001),
            Demonstrations("transfer_cube_random", 400, 810_001),
            Demonstrations("insertion", 300, 500_001),
        ),
        vae=VaeTraining(dataset=dataset, weights_dtype="float16"),
        policy=policy,
        refinement=refinement,
        distillation=distillation,
    )

"""The recipe of the shipped policy `small` on the simulated ALOHA tasks: what made the weights in `edgewam/assets/small`.

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
    """What to collect: `num_episodes` successful ones of the scripted expert of `task`, in its own style, from `first_seed`."""

    task: str
    num_episodes: int
    first_seed: int


@dataclass(frozen=True)
class Recipe:
    """Every step from nothing to a student, below one working directory.

    First one task: vae and policy (directories vae, start), on the first of the demonstrations (dataset).  Then all of
    them, joined (tasks): all_vae goes on from the first VAE and keeps its latent space, refinement goes on from the policy;
    its result is the teacher.
    """

    demonstrations: tuple[Demonstrations, ...]
    vae: VaeTraining
    policy: PolicyTraining
    all_vae: VaeTraining
    refinement: PolicyTraining
    distillation: OdeDistillation


def small_cpu(work: Path) -> Recipe:
    """Three tasks on two CPU cores: 40 min of demonstrations, then three hours of training in all."""
    from edgewam.distill.ode import OdeDistillation
    from edgewam.training.aha_wam import PolicyTraining
    from edgewam.training.vae import VaeTraining

    dataset, tasks, teacher = (work / name for name in ("dataset", "tasks", "teacher"))
    vae = VaeTraining(dataset=dataset, weights_dtype="float16")
    policy = PolicyTraining(dataset=dataset, vae=work / "vae", weights_dtype="float16")
    all_vae = replace(
        vae,
        dataset=tasks,
        reproduce=work / "vae",
        reproduce_weight=0.05,  # frames of the first task hold the space in place, the others' may find theirs
        max_frames=14_000,
        loop=replace(vae.loop, minutes=9.0),
    )
    latents = work / "latents"
    refinement = replace(
        policy,
        dataset=tasks,
        vae=work / "all_vae",
        latents=latents,
        init_from=work / "start",
        batch_size=40,  # other batches than those of the first run, whose order has the same seed
        action_draws=2,  # twice the action targets for a sixth more time
        muon_lr=0.012,
        adamw_lr=6e-4,
        loop=replace(policy.loop, minutes=48.0, warmup_steps=50),
    )
    return Recipe(
        demonstrations=(
            Demonstrations("transfer_cube", 400, 300_001),
            Demonstrations("transfer_cube_random", 400, 400_001),
            Demonstrations("insertion", 300, 500_001),
        ),
        vae=vae,
        policy=policy,
        all_vae=all_vae,
        refinement=refinement,
        distillation=OdeDistillation(teacher=teacher, dataset=tasks, latents=latents, weights_dtype="float16"),
    )

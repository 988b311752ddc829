"""The recipe of `small` on the simulated ALOHA.  What made the shipped weights, run by run: edgewam/assets/small/README.md.

One function per hardware; a variant derives from another with `dataclasses.replace`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgewam.distill.ode import OdeDistillation
    from edgewam.training.policy import PolicyTraining
    from edgewam.training.vae import VaeTraining


@dataclass(frozen=True)
class Recipe:
    """Every step from nothing to a student.  Directories: dataset, vae, start, teacher, student below one working directory.

    policy: from random weights.  refinement: from those, with the rates of a restart; its result is the teacher.
    distillation: from the teacher's weights.  sharpening: from that student's.
    """

    vae: VaeTraining
    policy: PolicyTraining
    refinement: PolicyTraining
    distillation: OdeDistillation
    sharpening: OdeDistillation


def small_cpu(work: Path) -> Recipe:
    """Two CPU cores, on what `edgewam collect` records: 193 minutes of training in all, beside the caches."""
    from edgewam.distill.ode import OdeDistillation
    from edgewam.distill.trajectories import TrajectoryPlan
    from edgewam.training.policy import PolicyTraining
    from edgewam.training.vae import VaeTraining

    dataset, vae, start, teacher, student = (work / name for name in ("dataset", "vae", "start", "teacher", "student"))
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
    # not as released: to the teacher's deployed steps, through the student's own two, which are equal; what that is worth was
    # measured on episodes that an earlier student played, not on demonstrations (benchmarks/NOTES.md)
    distillation = replace(
        distillation,
        trajectories=TrajectoryPlan(num_batches=512, num_steps=10, captured=(0, 10)),
        anchor_draws=0,
        rollout=True,
        huber=0.02,
        shift=1.0,
        lr=6e-4,
        loop=replace(distillation.loop, minutes=45.0),
    )
    # what a student still gets wrong lies where the teacher's draws lie apart; a higher rate first undoes what it learnt
    sharpening = replace(
        distillation,
        init_from=student,
        trajectories=replace(distillation.trajectories, num_batches=1024, focused=512, captured=(0, 1, 10)),
        shift=None,  # it keeps the schedule that it was taught
        lr=1e-4,
        loop=replace(distillation.loop, minutes=30.0, ema_decay=0.995),
    )
    return Recipe(
        vae=VaeTraining(dataset=dataset, weights_dtype="float16"),
        policy=policy,
        refinement=refinement,
        distillation=distillation,
        sharpening=sharpening,
    )

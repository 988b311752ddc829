"""Distiller `ode`: the executor learns to jump from any anchor of the teacher's trajectory to its end.

Facts/aha_wam.md 7: sixteen teacher steps, six anchors, one drawn uniformly for every chunk; plain mean squared error to the
teacher's result, no weighting and no ground truth.  Only what the family names learns, which is its action expert.  The student
is sampled with the ordinary Euler sampler at 1, 2 or 4 steps.

`rollout` adds to it, or with `anchor_draws=0` puts in its place, the steps that the student is going to take itself.  With the
teacher's `shift` of 5 the first of two steps moves 17 % of the way (facts/performance.md 6.2); a student may have its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgewam.core.artifacts import refuse_to_replace
from edgewam.core.errors import EdgewamError
from edgewam.core.estimate import StepPlan
from edgewam.data.dataset import Dataset
from edgewam.distill.fidelity import JUDGED_STEPS, action_names, fidelity
from edgewam.distill.ode_config import OdeDistillation
from edgewam.distill.trajectories import TrajectoryCache, build_trajectories, plan_prefix
from edgewam.flow.solver import euler_table
from edgewam.models import checkpoints
from edgewam.models.family import sizes, trainable
from edgewam.models.flow_ode import Trajectory
from edgewam.models.text_sources import embedded_now
from edgewam.training.latents import LatentPlan
from edgewam.training.loop import Loss, Progress, train, whole_module
from edgewam.training.optimizers import ParameterGroup
from edgewam.training.policy_artifact import LoadedPolicy, load_policy, write_policy
from edgewam.training.policy_source import held_batches, open_sources
from edgewam.training.ranks import WHOLE, Share, one_message
from edgewam.training.weights import rounded
from edgewam.training.windows import Source, latent_plan

Config = OdeDistillation


class OdeTask:
    """The student; a batch is the number of a cached batch of trajectories."""

    def __init__(
        self,
        config: OdeDistillation,
        family: str,
        teacher: nn.Module,
        student: nn.Module,
        cache: TrajectoryCache,
        digests: Mapping[str, str],
    ) -> None:
        self.config, self.teacher, self.cache, self.family = config, teacher, cache, trainable(family)
        self.module: nn.Module = student
        # the student acts with the teacher's rounding of tables, so it learns at those timesteps
        table = euler_table(cache.plan.num_steps, sizes(teacher).shift, cache.tables)
        self._timesteps = table.timesteps[list(cache.plan.captured[:-1])]
        self.identity: Mapping[str, Any] = {"task": "ode", **digests, "trajectories": cache.plan.to_json(), **config.settings()}
        for parameter in student.parameters():
            parameter.requires_grad_(False)
        for parameter in self._learning().values():
            parameter.requires_grad_(True)

    def _learning(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if name.startswith(self.family.LEARNT_BY_STUDENTS)}

    def parameter_groups(self) -> list[ParameterGroup]:
        """What students of this family learn, AdamW."""
        return [ParameterGroup("adamw", self._learning(), lr=self.config.lr, weight_decay=self.config.weight_decay)]

    def batch(self, index: int, generator: np.random.Generator) -> int:
        """Cached batches in turn, reshuffled every round; pictures are read ahead, so theirs keep their order, a random one."""
        count = self.cache.plan.num_batches
        if self.config.frames:
            return index % count
        order = np.random.default_rng([self.config.loop.seed, index // count]).permutation(count)
        return int(order[index % count])

    def blocks(self) -> list[nn.Module]:
        """The family's layers."""
        return list(self.family.BLOCKS(self.module))

    def loss(self, batch: int, generator: torch.Generator, share: Share = WHOLE) -> Loss:
        """Distance to the teacher's result: of jumps from a random anchor per chunk, and of the student's own steps."""
        device, choice = self.config.loop.device, self.cache.choice(batch)
        size, rows = len(choice), share.rows(len(choice))
        data = self.cache.source.batch(choice.rows(rows.start, rows.stop)).to(device)
        states = self.cache.batch(batch)[:, rows].to(device)
        trajectory = Trajectory(states, self._timesteps, self.cache.plan.captured)
        family, student = self.family, self.module
        conditioning = family.condition(student if family.OWN_CONDITIONING else self.teacher, data)
        pad, huber, prefix = data.action_is_pad, self.config.huber, plan_prefix(data, self.cache.plan, batch, rows)
        whole, count = data.widened(size), len(self._timesteps)
        losses = [
            family.ode_loss(student, conditioning, trajectory, anchors[rows], pad, huber, prefix)
            for anchors in (family.draw_anchors(whole, count, generator) for _ in range(self.config.anchor_draws))
        ]
        if self.config.rollout:
            table = euler_table(self.config.num_action_steps, sizes(student).shift, self.cache.tables)
            losses.append(family.rollout_loss(student, conditioning, trajectory, table, pad, huber, prefix))
        return Loss(torch.stack(losses).mean(), {}, rows.stop - rows.start)

    def describe(self, batch: int) -> str:
        """The windows behind a cached batch."""
        return self.cache.source.describe(self.cache.choice(batch))


def prepare(
    config: OdeDistillation, work: Path, report: Callable[[str], None] | None = None
) -> tuple[OdeTask, Source, LoadedPolicy]:
    """Load the teacher, fill the caches in `work`, and return the task, the held-out windows and the teacher.

    Args:
        config: what to distil.
        work: working directory of this distillation.
        report: gets a line of text per cached part.
    """
    say = report or (lambda line: None)
    dataset = Dataset.open(config.dataset)
    teacher = load_policy(config.teacher, config.vae)
    facts, device = teacher.facts, config.loop.device
    dataset.check_fits(f"'{config.teacher}'", teacher.sizes.proprio_dim, teacher.sizes.action_dim, facts.fps)
    if config.trajectories.max_prefix > facts.max_prefix:
        raise EdgewamError(
            f"This teacher was trained with prefixes of up to {facts.max_prefix} rows; a student cannot learn "
            f"{config.trajectories.max_prefix} from it. Train the teacher with max_prefix, or distil with less."
        )
    digest = teacher.manifest.parents["vae"]
    text = embedded_now(teacher.text(config.text), dataset.tasks)
    sources = open_sources(
        dataset, teacher.vae, digest, policy_latents(teacher, config.start_stride), config.loop, teacher.stats, text,
        facts.layout, say, cache=None if config.frames else config.latents or work / "latents",
        batch_size=config.trajectories.batch_size, num_workers=config.num_workers,
        chunk_images=trainable(teacher.family).CHUNK_IMAGES,
    )  # fmt: skip
    digests = {"teacher": teacher.manifest.digest, "dataset": dataset.digest, "vae": digest}
    if config.start_stride is not None:  # trajectories start at other windows
        digests["start_stride"] = str(config.start_stride)
    student, start = copy.deepcopy(teacher.model), teacher
    teacher.model.to(device)
    cache = build_trajectories(
        work / "trajectories", teacher.family, teacher.model, sources.train, digests, config.trajectories,
        lambda done, total, left: say(f"trajectories: batch {done}/{total}, {left:.0f} s left"), facts.sampler_tables,
        config.loop.autocast,
    )  # fmt: skip
    if config.init_from is not None:
        start = load_policy(config.init_from, teacher.vae_path)
        checkpoints.fit(student, start.model.state_dict(), f"'{config.init_from}'")
        digests["init_from"] = start.manifest.digest
    student.config = replace(student.config, shift=config.shift or start.sizes.shift)  # type: ignore[arg-type,type-var]
    return OdeTask(config, teacher.family, teacher.model, student, cache, digests), sources.held, teacher


def policy_latents(policy: LoadedPolicy, start_stride: int | None = None) -> LatentPlan:
    """The latents that a policy's windows need, or windows that start every so many control steps."""
    facts = policy.facts
    return latent_plan(facts.layout, policy.sizes, start_stride or facts.start_stride, facts.latent_seed, facts.composition)


@one_message
def distill(
    config: OdeDistillation,
    out: Path | str,
    progress: Callable[[Progress], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Distil a teacher and write the artifact `out` (kind "student"); returns its measured fidelity.

    The running state and the caches live in `<out>.training` beside it; a run that was cut goes on from there.  With several
    ranks all call it with the same arguments, and rank 0 measures and writes; the others return nothing.

    Raises:
        EdgewamError: what teacher, dataset, caches or loop refuse.
    """
    out = Path(out)
    refuse_to_replace(out, "student")
    work = out.parent / f"{out.name}.training"
    task, held, teacher = prepare(config, work, report)
    result = train(task, config.loop, work, progress=progress)
    if not result.ranks.is_main:
        return {}
    # in the task too: beside teacher and student no card has room for the shards
    task.module = student = whole_module(task.module, result, lambda: task.family.build(sizes(task.module)))
    student.load_state_dict(rounded(result.weights, config.weights_dtype))
    student = student.to(config.loop.device)
    names = action_names(Dataset.open(config.dataset))
    fixed = config.anchor_draws == 0
    arm = [name for name in names if "gripper" not in name]
    steps = [config.num_action_steps] if fixed else sorted({*JUDGED_STEPS, config.num_action_steps})
    measured: dict[str, Any] = fidelity(
        teacher.family, teacher.model, student, held, teacher.stats, arm, names, steps,
        tables=teacher.facts.sampler_tables, **held_batches(config.frames),
    )  # fmt: skip
    measured |= {"steps": result.step, "minutes": round(result.elapsed_s / 60, 2), "weights_dtype": config.weights_dtype}
    metadata = {
        "teacher": teacher.manifest.digest,
        "teacher_num_inference_steps": task.cache.plan.num_steps,
        "teacher_capture_step_indices": list(task.cache.plan.captured),
        "teacher_sigma_shift": teacher.sizes.shift,
    }
    write_policy(
        out,
        "student",
        teacher.family,
        student.cpu(),
        teacher.stats,
        teacher.vae_path,
        replace(
            teacher.facts,
            ode_metadata=metadata,
            num_action_steps=config.num_action_steps,
            steps_are_fixed=fixed,
            max_prefix=config.trajectories.max_prefix,
        ),
        recipe={**task.identity, "loop": asdict(config.loop)},
        parents={name: task.identity[name] for name in ("teacher", "dataset", "vae", "init_from") if name in task.identity},
        measured=measured,
        dtype=config.weights_dtype,
        log_from=work,
        base=config.teacher,
        prompts=teacher.prompts,
    )
    return measured


def estimate(config: OdeDistillation, out: Path | str) -> list[StepPlan]:
    """What `distill` with the same arguments is going to do and take; nothing is written.

    Raises:
        EdgewamError: what `distill` would refuse at its start.
    """
    from edgewam.distill.ode_estimate import estimate_ode  # it needs this module

    return estimate_ode(config, Path(out))

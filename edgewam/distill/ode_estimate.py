"""The plan of `ode.distill`: latents, teacher trajectories, training.  Inputs are opened and checked as the run would."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from edgewam.core.estimate import Duration, Line, StepPlan, timed_at, timed_here
from edgewam.data.dataset import Dataset
from edgewam.distill.ode import OdeDistillation, OdeTask, policy_latents
from edgewam.distill.trajectories import TrajectoryCache, TrajectoryPlan, batches_done, trajectory_shape
from edgewam.models import checkpoints
from edgewam.models.family import Sizes, sizes, trainable
from edgewam.training.estimate import BatchKind, duration, module_bytes, process_parts, stored_bytes, training_cost
from edgewam.training.estimate_latents import estimate_latents
from edgewam.training.example_windows import ExampleWindows
from edgewam.training.memory import run_memory
from edgewam.training.policy_artifact import LoadedPolicy, load_policy

_COUNTED = (1, 2)  # contexts of the trajectories whose memory is counted


def estimate_ode(config: OdeDistillation, out: Path) -> list[StepPlan]:
    """What `distill(config, out)` is going to do and take; nothing is written.

    Raises:
        EdgewamError: what `distill` would refuse at its start.
    """
    work = out.parent / f"{out.name}.training"
    if config.loop.threads is not None:
        torch.set_num_threads(config.loop.threads)
    dataset = Dataset.open(config.dataset)
    before = process_parts(dataset)
    teacher = load_policy(config.teacher, config.vae)
    device = config.loop.device
    teacher.model.to(device)
    latents = config.latents or work / "latents"
    places = (str(config.teacher), str(config.dataset))
    cached: list[StepPlan] = []
    if not config.frames:
        digest, inputs = teacher.manifest.parents["vae"], (str(config.dataset), str(teacher.vae_path))
        plan = policy_latents(teacher, config.start_stride)
        cached = [estimate_latents(latents, dataset, teacher.vae, digest, plan, device, before=before, inputs=inputs)]
    seen = places if config.frames else (*places, str(latents))
    return [
        *cached,
        _trajectories(config, before, teacher, work / "trajectories", seen),
        _training(config, before, teacher, out, work, (*places, str(work / "trajectories"))),
    ]


def _trajectories(
    config: OdeDistillation, before: Mapping[str, int], teacher: LoadedPolicy, out: Path, inputs: tuple[str, ...]
) -> StepPlan:
    plan, model, layout = config.trajectories, teacher.model, teacher.facts.layout
    family = trainable(teacher.family)

    @torch.inference_mode()
    def roll_out(size: int) -> None:
        windows = ExampleWindows(sizes(model), layout, size)
        batch = windows.batch(windows.draw(size, np.random.default_rng(0))).to(config.loop.device)
        with torch.autocast(torch.device(config.loop.device).type, torch.bfloat16, enabled=config.loop.autocast):
            conditioning = family.condition(model, batch)
            family.teacher_trajectory(model, conditioning, torch.randn_like(batch.actions), plan.num_steps, plan.captured)

    counted = [run_memory(lambda n=n: roll_out(n)) for n in _COUNTED]  # type: ignore[misc]  # first: it also warms up
    temporaries = round(Line.through(_COUNTED[0], counted[0], _COUNTED[1], counted[1]).at(plan.batch_size))
    each = timed_at(roll_out, plan.batch_size)
    done = batches_done(out)
    size = 4 * int(np.prod(trajectory_shape(plan, sizes(model))))
    memory = {
        **before, "teacher and VAE": module_bytes(model, teacher.vae), "temporaries": temporaries,
    }  # fmt: skip
    return StepPlan(
        name="trajectories",
        inputs=inputs,
        outputs=(str(out),),
        work=f"{plan.num_batches} batches of {plan.batch_size} contexts, {plan.num_steps} teacher steps each"
        + (f"; {done} batches are done" if done else ""),
        duration=Duration(each * (plan.num_batches - done), f"{each:.2g} s a batch, {timed_here()}"),
        memory={"rolling out": memory},
        disk={"trajectories": 0 if done else size},
        settled="complete" if done == plan.num_batches else "",
    )


def _training(
    config: OdeDistillation, before: Mapping[str, int], teacher: LoadedPolicy, out: Path, work: Path, inputs: tuple[str, ...]
) -> StepPlan:
    student = copy.deepcopy(teacher.model)
    if config.init_from is not None:
        start = load_policy(config.init_from, teacher.vae_path)
        checkpoints.fit(student, start.model.state_dict(), f"'{config.init_from}'")
    windows = ExampleWindows(sizes(student), teacher.facts.layout, 1)
    plan = replace(config.trajectories, num_batches=1, focused=0)
    task = OdeTask(config, teacher.family, teacher.model, student, _cache(plan, sizes(student), windows), {})

    def example(size: int) -> int:
        windows.size = size
        task.cache = _cache(plan, sizes(student), windows)
        return 0

    cost = training_cost(task, config.loop, [BatchKind(1.0, plan.batch_size, example)], [teacher.model, teacher.vae])
    time, work_text = duration(cost, config.loop, work)
    learned = {name: p for group in task.parameter_groups() for name, p in group.parameters.items()}
    # on top of another student, more than what learns may differ from the teacher
    stored = student.state_dict() if config.init_from else learned
    return StepPlan(
        name="distill",
        inputs=inputs,
        outputs=(str(out), str(work)),
        work=f"{work_text}, {plan.batch_size} contexts a batch",
        duration=time,
        memory=cost.memory(before),
        disk={"checkpoint": cost.checkpoint, "student": stored_bytes(stored, config.weights_dtype)},
        disk_extra=cost.checkpoint,
        notes=cost.notes,
    )


def _cache(plan: TrajectoryPlan, model: Sizes, windows: ExampleWindows) -> TrajectoryCache:
    plan = replace(plan, batch_size=windows.size)
    states = np.zeros(trajectory_shape(plan, model), np.float32)
    return TrajectoryCache(states, plan, windows, model.shift)  # type: ignore[arg-type]  # it stands in for a WindowSource

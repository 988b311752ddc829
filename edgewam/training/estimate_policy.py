"""The plan of `train_policy`: latents, then training.  Inputs are opened and checked as the training would."""

from __future__ import annotations

from pathlib import Path

import torch

from edgewam.core.estimate import StepPlan
from edgewam.data.dataset import open_demonstrations
from edgewam.models import checkpoints
from edgewam.models.family import trainable
from edgewam.training.estimate import TRIAL_PARAMETERS, BatchKind, duration, process_parts, stored_bytes, training_cost
from edgewam.training.estimate_latents import estimate_latents
from edgewam.training.example_windows import ExampleWindows
from edgewam.training.policy import PolicyTask, PolicyTraining, starting_policy
from edgewam.training.weights import load_vae
from edgewam.training.windows import latent_plan


def estimate_policy(config: PolicyTraining, out: Path) -> list[StepPlan]:
    """What `train_policy(config, out)` is going to do and take; nothing is written.

    Raises:
        EdgewamError: what `train_policy` would refuse at its start.
    """
    work = out.parent / f"{out.name}.training"
    if config.loop.threads is not None:
        torch.set_num_threads(config.loop.threads)
    dataset = open_demonstrations(config.dataset)
    before = process_parts(dataset)
    vae, manifest = load_vae(config.vae)
    family = trainable(config.family)
    with torch.device("meta"):
        model = family.build(config.model)
    if config.init_from:
        start = starting_policy(config, manifest)
        checkpoints.fit(model, start.model.state_dict(), f"'{config.init_from}'")
    elif sum(p.numel() for p in model.parameters()) <= TRIAL_PARAMETERS:
        model = family.build(config.model)
    if not any(p.is_meta for p in model.parameters()):
        model = model.to(config.loop.device)
    windows = ExampleWindows(config.model, config.layout, 1)
    task = PolicyTask(config, windows, {}, model.requires_grad_(True))  # type: ignore[arg-type]

    def example(size: int) -> object:
        windows.size = size
        return windows.draw(size, None)  # type: ignore[arg-type]

    cost = training_cost(task, config.loop, [BatchKind(1.0, config.batch_size, example)], [vae])
    time, work_text = duration(cost, config.loop, work)
    places = [config.dataset, config.vae, *([config.init_from] if config.init_from else [])]
    latents = config.latents or work / "latents"
    cached: list[StepPlan] = []
    if not config.frames:
        plan = latent_plan(config.layout, config.model, config.start_stride, config.loop.seed, config.composition)
        device, inputs = config.loop.device, (str(config.dataset), str(config.vae))
        cached = [estimate_latents(latents, dataset, vae, manifest.digest, plan, device, before=before, inputs=inputs)]
    return [
        *cached,
        StepPlan(
            name="train",
            inputs=(*map(str, places), *([] if config.frames else [str(latents)])),
            outputs=(str(out), str(work)),
            work=f"{work_text}, {config.batch_size} windows a batch",
            duration=time,
            memory=cost.memory(before),
            disk={"checkpoint": cost.checkpoint, "policy": stored_bytes(model.state_dict(), config.weights_dtype)},
            disk_extra=cost.checkpoint,
            notes=cost.notes,
        ),
    ]

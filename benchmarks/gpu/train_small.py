"""Training speed of the policy `small` on a carried data file: optimiser steps per second of the very loop that trains it.

Windows are drawn and put together on the processor as in a real training, so the figure includes it.  A packed file made
of a few episodes serves for speed, not for a good policy.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.gpu_clock import gpu_contract
from benchmarks.gpu.jobs import Emit, Job
from benchmarks.gpu.packed import Packed, read_packed, synthetic
from benchmarks.results import Section
from edgewam.models.text import SmallTextEncoder
from edgewam.profiles.measure import Timing
from edgewam.training.log import read_log
from edgewam.training.loop import LoopConfig, Progress, train
from edgewam.training.policy import PolicyTask, PolicyTraining
from edgewam.training.windows import WindowSource


def run(job: Job, device: str, emit: Emit) -> None:
    """One section per batch size: step times, steps and samples per second, first and last loss."""
    with tempfile.TemporaryDirectory(prefix="edgewam_train_") as scratch:
        path = Path(job.params.get("data") or Path(scratch) / "synthetic.npz")
        if "data" not in job.params:
            synthetic(path, **job.params["synthetic"])
        packed = read_packed(path)
        for batch_size, steps in job.params["runs"]:
            emit(f"batch_{batch_size}", _train(packed, batch_size, steps, job, device, Path(scratch) / f"batch_{batch_size}"))


def _train(packed: Packed, batch_size: int, steps: int, job: Job, device: str, out: Path) -> Section:
    warmup = job.params["warmup"]
    loop = LoopConfig(
        steps=steps, warmup_steps=max(1, steps // 10), device=device, tensorboard=False, checkpoint_minutes=1e6, log_every=1
    )
    config = PolicyTraining(dataset=Path("packed"), vae=Path("packed"), loop=loop, batch_size=batch_size)
    if small := job.params.get("model"):
        config = replace(config, model=replace(config.model, **small))
    text = SmallTextEncoder(config.model.text_dim, config.model.text_len)
    source = WindowSource(packed.dataset, packed.cache, packed.stats, text, config.layout, range(packed.dataset.num_episodes))  # type: ignore[arg-type]
    task = PolicyTask(config, source, packed.origin)
    ends = []

    def progress(_: Progress) -> None:
        if device != "cpu":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    train(task, loop, out, progress=progress)
    step_ms = np.diff(ends)[warmup:] * 1e3
    losses = [line["action"] for line in read_log(out)]
    assert np.isfinite(losses).all(), "the loss is not a number"
    timing = Timing.from_samples(step_ms.tolist())
    figures = {
        "steps_per_s": 1e3 / float(step_ms.mean()),
        "contexts_per_s": 1e3 * batch_size / float(step_ms.mean()),
        "windows": source.num_windows,
        "parameters": sum(p.numel() for p in task.module.parameters()),
        "action_loss_first": float(np.mean(losses[: max(1, steps // 10)])),
        "action_loss_last": float(np.mean(losses[-max(1, steps // 10) :])),
        "synthetic_data": bool(packed.origin.get("synthetic", False)),
    }
    if device != "cpu":
        figures["memory_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    contract = gpu_contract(
        device, engine="training loop (eager, autocast)", precision="bf16 products, fp32 weights", steps=0,
        shapes={"batch": (batch_size,), "image": (config.model.image_height, config.model.image_width, 3),
                "actions": (config.model.horizon, config.model.action_dim)},
        stages=("draw", "forward", "backward", "optimizer", "average"), host_copies=True, warmup=warmup, n=timing.n, clock="wall",
    )  # fmt: skip
    return Section(contract, figures, {"step": timing})

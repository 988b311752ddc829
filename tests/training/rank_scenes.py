"""What `test_parallel` looks at: trainings of the same thing on one, two and four ranks, stopped, killed and resumed.

Run as a program with a directory: it forks the ranks and leaves their checkpoints, logs and words there.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch._dynamo
import torch.distributed.fsdp
from safetensors.torch import save_file

from edgewam.data.dataset import Dataset
from edgewam.data.windows import WindowLayout
from edgewam.distill.ode import OdeDistillation, distill
from edgewam.distill.trajectories import TrajectoryPlan
from edgewam.models.flow_loss import LossBatch
from edgewam.training.checkpoint import CHECKPOINT, restore, write_checkpoint
from edgewam.training.example_windows import ExampleWindows
from edgewam.training.loop import LoopConfig, train
from edgewam.training.optimizers import WeightAverage, build_optimizers
from edgewam.training.parallel import computed, gathered, rows_of, shard
from edgewam.training.policy import PolicyTask, PolicyTraining, train_policy
from edgewam.training.policy_config import small_training_model
from edgewam.training.ranks import join_ranks
from edgewam.training.windows import Choice
from tests.training import tiny
from tests.training.ranks import run
from tests.training.toy import RankToy

assert torch.distributed.fsdp and torch._dynamo  # slow to import: once, before the ranks are forked

TOY = LoopConfig(
    steps=6, warmup_steps=2, ema_decay=0.9, clip_norm=0.1, accumulate=2, log_every=1, autocast=False, threads=1, tensorboard=False
)
MANY = replace(TOY, recompute=True, reshard=True)  # neither changes a value


class Signalled(RankToy):
    """Gets a signal on one rank as the batch of micro-step `at` is drawn."""

    def __init__(self, number: int, rank: int, at: int, **options: Any) -> None:
        super().__init__(**options)
        self.signal = number, rank, at

    def batch(self, index: int, generator: np.random.Generator) -> tuple[int, Any]:
        number, rank, at = self.signal
        if index == at and int(os.environ["RANK"]) == rank:
            os.kill(os.getpid(), number)
        return super().batch(index, generator)


def rewrite(source: Path, target: Path) -> None:
    """Restore a checkpoint on these ranks and write it again."""
    task = RankToy(matrices=False)
    ranks = join_ranks()
    shard(task.module, task.blocks(), ranks)
    optimizers = build_optimizers(task.parameter_groups())
    average = WeightAverage(task.module, 0.9).state
    config = json.loads((source / CHECKPOINT).read_text())["config"]
    done = restore(source / CHECKPOINT, task.module, average, optimizers, config, ranks)
    write_checkpoint(target / CHECKPOINT, task.module, average, optimizers, done, config, ranks)
    found = gathered(task.module.state_dict(), ranks)
    assert bool(found) == ranks.is_main


def muon(whole: Path, sharded: Path) -> None:
    """Three steps with gradients that are given, and equal on any number of ranks."""
    task, ranks = RankToy(), join_ranks()
    if ranks.world > 1:
        shard(task.module, task.blocks(), ranks)
    (optimizer,) = [o for o in build_optimizers(task.parameter_groups()).values() if isinstance(o, torch.optim.Muon)]
    matrices = optimizer.param_groups[0]["params"]
    for step in range(3):
        for number, matrix in enumerate(matrices):
            gradient = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(10 * step + number))
            matrix.grad = rows_of(gradient, matrix)
        optimizer.step()
    found = gathered({str(number): matrix for number, matrix in enumerate(matrices)}, ranks)
    if ranks.is_main:
        save_file(found, (whole if ranks.world == 1 else sharded) / "matrices.safetensors")


def half(out: Path) -> None:
    """Gradients of a loss that is computed with weights gathered in bfloat16."""
    task, ranks = RankToy(), join_ranks()
    shard(task.module, task.blocks(), ranks, bfloat16=True)
    batch = task.batch(0, np.random.default_rng(0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = computed(task.module, lambda: task.loss(batch, torch.Generator().manual_seed(0), ranks.share))
    _, factor = ranks.mean([loss.value.item()], loss.weight)
    (loss.value * factor).backward()
    found = gathered({name: p.grad for name, p in task.module.named_parameters() if p.grad is not None}, ranks)
    if ranks.is_main:
        save_file(found, out / "gradients.safetensors")


def inside(task: RankToy, config: LoopConfig, out: Path) -> None:
    """As by Ray, which joins its ranks before it calls the function that trains."""
    torch.distributed.init_process_group("gloo")
    train(task, config, out)


def full_disk(config: LoopConfig, out: Path) -> None:
    """Rank 1 finds no space for its second shard."""
    real, writes = safetensors.torch.save, 0

    def save(*arguments: Any, **options: Any) -> bytes:
        nonlocal writes
        writes += 1
        if writes == 2 and os.environ["RANK"] == "1":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **options)

    safetensors.torch.save = save
    train(RankToy(matrices=False), config, out)


class Windows:
    """Stands in for a `WindowSource` of `small`: random content, and every sample padded at another place."""

    def draw(self, size: int, generator: np.random.Generator, index: int | None = None) -> Choice:
        return Choice(generator.permutation(100)[:size], np.zeros(size, np.int64), 1)

    def batch(self, choice: Choice) -> LossBatch:
        generator = torch.Generator().manual_seed(0)
        every = ExampleWindows(small_training_model(), WindowLayout(), 1).batch(Choice(np.arange(100), np.zeros(100), 1))
        parts = {f.name: getattr(every, f.name) for f in fields(LossBatch)}
        floats = {name: torch.randn(part.shape, generator=generator) for name, part in parts.items() if part.is_floating_point()}
        actions, images = (parts[name] for name in ("action_is_pad", "image_is_pad"))
        ends = torch.arange(100)[:, None]
        pads = {
            "action_is_pad": torch.arange(actions.shape[1]) >= actions.shape[1] - 13 * ends % (actions.shape[1] - 1),
            "image_is_pad": torch.arange(images.shape[1]) >= images.shape[1] - 5 * ends % (images.shape[1] - 1),
        }
        rows = torch.from_numpy(choice.windows)
        return LossBatch(**{name: part[rows] for name, part in (parts | floats | pads).items()})

    def describe(self, choice: Choice) -> str:
        return str(choice.windows)


def small_step(out: Path) -> None:
    """The first step of the recipe of `small`, in float32, on a batch that two ranks cannot halve."""
    loop = LoopConfig(steps=1, warmup_steps=200, autocast=False, threads=1, tensorboard=False, recompute="two" in out.name)
    config = PolicyTraining(dataset=Path(), vae=Path(), batch_size=5, loop=loop)
    train(PolicyTask(config, Windows(), {}), loop, out)  # type: ignore[arg-type]


def make_road(out: Path) -> None:
    tiny.dataset_at(out / "dataset")
    tiny.vae_at(out / "vae")


def teach(out: Path) -> None:
    dataset = Dataset.open(out.parent / "road/dataset")
    config = tiny.policy_training(
        dataset,
        out.parent / "road/vae",
        out / "latents",
        batch_size=5,
        max_prefix=2,
        muon_lr=1e-4,
        loop=replace(tiny.LOOP, steps=2),
    )
    train_policy(config, out / "teacher")


def learn(out: Path) -> None:
    """From the teacher of one rank, so that trajectories can be compared byte by byte."""
    plan = TrajectoryPlan(num_batches=5, focused=2, batch_size=3, num_steps=4, captured=(0, 1, 4), max_prefix=1)
    one = out.parent / "taught_one"
    config = OdeDistillation(
        teacher=one / "teacher", dataset=out.parent / "road/dataset", latents=one / "latents", trajectories=plan,
        loop=replace(tiny.LOOP, steps=2, accumulate=2), rollout=True,  # frozen blocks keep no gradients between passes
    )  # fmt: skip
    distill(config, out / "student")


BEFORE = {"two": "stopped", "back_to_one": "stopped", "four": "stopped", "after_kill": "killed", "after_full_disk": "full_disk"}


def main(out: Path) -> None:
    said = {}
    for name, world, function, arguments in (
        ("one", 1, train, (RankToy(matrices=False), TOY)),
        ("muon_whole", 1, muon, (out / "muon_whole",)),
        ("muon_sharded", 2, muon, (out / "muon_whole",)),
        ("stopped", 2, train, (Signalled(signal.SIGTERM, 1, 5, matrices=False), MANY)),
        ("two", 2, train, (RankToy(matrices=False), MANY)),
        ("back_to_one", 1, train, (RankToy(matrices=False), TOY)),
        ("four", 4, train, (RankToy(matrices=False), MANY)),
        ("inside", 2, inside, (RankToy(matrices=False), MANY)),
        ("rewritten", 4, rewrite, (out / "stopped",)),
        ("nan", 4, train, (RankToy(bad_row=(6, 5)), MANY)),
        ("killed", 2, train, (Signalled(signal.SIGKILL, 1, 8, matrices=False), replace(MANY, checkpoint_steps=2))),
        ("full_disk", 2, full_disk, (replace(MANY, checkpoint_steps=2),)),
        ("after_kill", 2, train, (RankToy(matrices=False), MANY)),
        ("after_full_disk", 1, train, (RankToy(matrices=False), TOY)),
        ("too_small", 4, train, (RankToy(rows=3), MANY)),
        ("half", 2, half, ()),
        ("small_one", 1, small_step, ()),
        ("small_two", 2, small_step, ()),
        ("road", 1, make_road, ()),
        ("taught_one", 1, teach, ()),
        ("taught_two", 2, teach, ()),
        ("learnt_one", 1, learn, ()),
        ("learnt_two", 2, learn, ()),
    ):
        before = BEFORE.get(name)
        if before is not None:
            shutil.copytree(out / before, out / name)
        (out / name).mkdir(exist_ok=True)
        said[name] = run(world, out / name, function, *arguments, out / name)
    (out / "said.json").write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

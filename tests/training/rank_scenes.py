"""What `test_parallel` looks at: trainings of the same thing on one, two and four ranks, stopped, killed and resumed.

Run as a program with a directory: it forks the ranks and leaves their checkpoints, logs and words there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch._dynamo
import torch.distributed.fsdp

from edgewam.training.checkpoint import CHECKPOINT, restore, write_checkpoint
from edgewam.training.loop import LoopConfig, train
from edgewam.training.optimizers import WeightAverage, build_optimizers
from edgewam.training.parallel import gathered, join_ranks, shard
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


def main(out: Path) -> None:
    said = {}
    for name, world, function, arguments in (
        ("one", 1, train, (RankToy(matrices=False), TOY)),
        ("muon_one", 1, train, (RankToy(), TOY)),
        ("muon_two", 2, train, (RankToy(), MANY)),
        ("stopped", 2, train, (Signalled(signal.SIGTERM, 1, 5, matrices=False), MANY)),
        ("two", 2, train, (RankToy(matrices=False), MANY)),
        ("back_to_one", 1, train, (RankToy(matrices=False), TOY)),
        ("four", 4, train, (RankToy(matrices=False), MANY)),
        ("rewritten", 4, rewrite, (out / "stopped",)),
        ("nan", 4, train, (RankToy(bad_row=(6, 5)), MANY)),
        ("killed", 2, train, (Signalled(signal.SIGKILL, 1, 8, matrices=False), replace(MANY, checkpoint_steps=2))),
        ("after_kill", 2, train, (RankToy(matrices=False), MANY)),
        ("too_small", 4, train, (RankToy(rows=3), MANY)),
    ):
        before = {"two": "stopped", "back_to_one": "stopped", "four": "stopped", "after_kill": "killed"}.get(name)
        if before is not None:
            shutil.copytree(out / before, out / name)
        (out / name).mkdir(exist_ok=True)
        said[name] = run(world, out / name, function, *arguments, out / name)
    (out / "said.json").write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

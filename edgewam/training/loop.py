"""The one training loop: VAE, policy and distillation are tasks that it drives.

It owns optimisers, schedule, clipping, weight average, logging, checkpoints and interruption; a task owns model, batches
and loss.  Every random number of step n comes from (seed, n): a training that was cut, by Ctrl-C or by kill -9, goes on
from its last checkpoint exactly as if nothing had happened (bit for bit on CPU while the schedule runs on steps).  With several
ranks each computes its rows of the same batch and noise, so their number changes how fast, not what.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from edgewam.core.errors import EdgewamError
from edgewam.training import parallel
from edgewam.training.checkpoint import CHECKPOINT, Progression, has_checkpoint, restore, write_checkpoint
from edgewam.training.log import ScalarLog
from edgewam.training.optimizers import ParameterGroup, WeightAverage, build_optimizers, rate_factor
from edgewam.training.ranks import WHOLE, Ranks, Share, join_ranks, one_voice


class Loss(NamedTuple):
    """`value`: scalar, the mean over what was computed here; `details`: means to log; `weight`: over how much (rows) they are."""

    value: Tensor
    details: Mapping[str, Tensor | float]
    weight: float


class Task(Protocol):
    """What is trained.  `module` is what a checkpoint holds; `identity` (plain JSON) is what a restart must agree with."""

    module: nn.Module
    identity: Mapping[str, Any]

    def parameter_groups(self) -> list[ParameterGroup]:
        """Trained parameters, each in exactly one group."""

    def batch(self, index: int, generator: np.random.Generator) -> Any:
        """Batch number `index` (micro-batches count); a function of the two arguments only."""

    def blocks(self) -> list[nn.Module]:
        """Parts of `module` that are gathered, and computed again in the backward pass, one by one; may be empty."""

    def loss(self, batch: Any, generator: torch.Generator, share: Share = WHOLE) -> Loss:
        """Loss of this rank's rows of a batch.

        Draws only from `generator` (a CPU generator), always for the whole batch, so that a row sees the same draws on any rank.
        """

    def describe(self, batch: Any) -> str:
        """Which data a batch holds, for the message about a loss that is not finite."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How to train.  At least one of `steps` and `minutes` limits the run; with both, the first to be reached."""

    steps: int | None = None  # optimiser steps
    minutes: float | None = None  # training time, over all restarts
    warmup_steps: int = 200
    final_lr: float = 0.01  # fraction of the base rate at the end of the cosine
    clip_norm: float = 1.0
    ema_decay: float | None = 0.999  # None: no weight average
    accumulate: int = 1  # micro-batches per optimiser step
    seed: int = 0
    device: str = "cpu"
    autocast: bool = True  # bfloat16 matrix products and convolutions, float32 weights and reductions
    threads: int | None = None  # None: leave torch's setting
    log_every: int = 10  # steps
    checkpoint_minutes: float = 3.0
    checkpoint_steps: int | None = None  # additionally, every so many steps
    recompute: bool = False  # each block's activations in the backward pass, instead of keeping them
    reshard: bool = False  # many ranks: drop a block's gathered weights between forward and backward pass
    tensorboard: bool = True

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("A training needs a limit: set steps= or minutes= (or both).")

    def fraction(self, step: int, elapsed_s: float) -> float:
        """How much of the run is done, in [0, 1]."""
        by_steps = step / self.steps if self.steps else 0.0 if self.steps is None else 1.0
        by_time = elapsed_s / (60.0 * self.minutes) if self.minutes else 0.0 if self.minutes is None else 1.0
        return min(1.0, max(by_steps, by_time))


@dataclass(frozen=True)
class Progress:
    """What a progress callback gets after every step."""

    step: int
    fraction: float
    seconds_left: float
    scalars: Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """A finished training: the module holds the last weights, `average` the averaged ones (None without an average).

    With several ranks both are sharded; `weights` are whole: the averaged ones, else the last, and empty but on rank 0.
    """

    step: int
    elapsed_s: float
    average: Mapping[str, Tensor] | None
    scalars: Mapping[str, float]
    weights: Mapping[str, Tensor]
    ranks: Ranks


class Interrupted(EdgewamError):
    """The user stopped the training; its checkpoint is complete."""


# these change how fast or how often, not what is computed: a restart may change them
FREE_FIELDS = ("device", "threads", "log_every", "checkpoint_minutes", "checkpoint_steps", "tensorboard", "recompute", "reshard")


def train(
    task: Task,
    config: LoopConfig,
    out_dir: Path | str,
    *,
    resume: bool = True,
    progress: Callable[[Progress], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Train `task` to the end, writing `checkpoint.json` and its shards, `log.jsonl` and `tensorboard/` to `out_dir`.

    Every rank calls it with an equal task and, on a disk that all share, the same `out_dir`; rank 0 logs and reports progress.

    Args:
        task: model, batches and loss; the module may still be on the CPU.
        config: limits, schedule, precision.
        out_dir: working directory; with `resume`, a checkpoint found there is continued, otherwise it is replaced.
        resume: continue when there is a checkpoint.
        progress: called after every step.
        clock: seconds; only tests replace it.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the state was saved.
        EdgewamError: the loss or its gradient is not finite (step and batch are named), or the disk is full.
        ArtifactError: the checkpoint there is unreadable or of another configuration.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    ranks = join_ranks(config.device)
    with one_voice(ranks):
        return _train(task, config, Path(out_dir), ranks, resume, progress if ranks.is_main else None, clock)


def _train(
    task: Task,
    config: LoopConfig,
    out_dir: Path,
    ranks: Ranks,
    resume: bool,
    progress: Callable[[Progress], None] | None,
    clock: Callable[[], float],
) -> Result:
    path = out_dir / CHECKPOINT
    if config.recompute:
        parallel.checkpoint_activations(task.blocks())
    if ranks.world > 1:
        # on CPUs layer norms take no mixed types, and autocast does not help them
        bfloat16 = config.autocast and ranks.device.type == "cuda"
        parallel.shard(task.module, task.blocks(), ranks, bfloat16, config.reshard)
    else:
        task.module.to(config.device)
    groups = task.parameter_groups()
    trained = [p for group in groups for p in group.parameters.values()]
    assert len({id(p) for p in trained}) == len(trained), "a parameter is in two groups"
    optimizers = build_optimizers(groups)
    base_rates = {group.name: group.lr for group in groups}
    average = WeightAverage(task.module, config.ema_decay) if config.ema_decay is not None else None
    average_state = None if average is None else average.state
    identity = {**{k: v for k, v in asdict(config).items() if k not in FREE_FIELDS}, **task.identity}
    done = Progression(0, 0.0)
    if resume and ranks.any(has_checkpoint(path)):  # a rank that does not see it must not start anew beside the others
        done = restore(path, task.module, average_state, optimizers, identity, ranks)
    log = ScalarLog(out_dir, done.step, config.tensorboard) if ranks.is_main else None
    start = clock() - done.elapsed_s
    step, scalars, saved_at = done.step, {}, done.elapsed_s
    fraction = config.fraction(step, done.elapsed_s)

    def save() -> None:
        progression = Progression(step, clock() - start)
        write_checkpoint(path, task.module, average_state, optimizers, progression, identity, ranks)

    try:
        with _stop_requests(ranks) as stop:
            while fraction < 1.0:
                factor = rate_factor(step, fraction, config.warmup_steps, config.final_lr)
                for name, optimizer in optimizers.items():
                    optimizer.param_groups[0]["lr"] = base_rates[name] * factor
                scalars = _step(task, config, step, optimizers, trained, ranks)
                if average is not None:
                    average.update(task.module, step)
                step += 1
                elapsed = ranks.of_main(clock() - start)
                fraction = config.fraction(step, elapsed)
                scalars |= {"lr_factor": factor, "elapsed_s": elapsed}
                if log is not None and ((step - 1) % config.log_every == 0 or fraction >= 1.0):
                    log.write(step - 1, scalars)
                if progress is not None:
                    progress(Progress(step, fraction, elapsed * (1.0 - fraction) / max(fraction, 1e-9), scalars))
                if ranks.any(stop.is_set()):
                    save()
                    raise Interrupted(f"Stopped after step {step}; run the same command again to go on from there ('{path}').")
                due = elapsed - saved_at >= 60.0 * config.checkpoint_minutes
                if due or (config.checkpoint_steps and step % config.checkpoint_steps == 0):
                    save()
                    saved_at = elapsed
            if step > done.step or not path.exists():
                save()
            # it came while the last step was being saved; what follows must not go on as if nothing was said
            if ranks.any(stop.is_set()):
                raise Interrupted(f"Stopped at the end, after step {step}; run the same command again to go on ('{path}').")
    finally:
        if log is not None:
            log.close()
    weights = average_state if average_state is not None else task.module.state_dict()
    if ranks.world > 1:
        weights = parallel.gathered(weights, ranks)
    return Result(step, clock() - start, average_state, scalars, weights, ranks)


def whole_module(module: nn.Module, result: Result, build: Callable[[], nn.Module]) -> nn.Module:
    """A module on the CPU that takes `result.weights` whole: the trained one, or where that is sharded a new one like it."""
    return module.cpu() if result.ranks.world == 1 else build().cpu()


def _step(
    task: Task,
    config: LoopConfig,
    step: int,
    optimizers: Mapping[str, torch.optim.Optimizer],
    trained: list[nn.Parameter],
    ranks: Ranks,
) -> dict[str, float]:
    """One optimiser step over `accumulate` micro-batches; the weights change only if loss and gradient are finite."""
    device = torch.device(config.device).type
    totals: dict[str, float] = {}
    names = []
    for micro in range(config.accumulate):
        index = step * config.accumulate + micro
        batch = task.batch(index, np.random.default_rng([config.seed, index]))
        names.append(task.describe(batch))
        generator = torch.Generator().manual_seed(
            int(np.random.SeedSequence([config.seed, index, 1]).generate_state(1, np.uint64)[0] >> 1)
        )
        with torch.autocast(device, torch.bfloat16, enabled=config.autocast):
            loss = parallel.computed(task.module, lambda: task.loss(batch, generator, ranks.share))  # noqa: B023 (called at once)
        found = {"loss": loss.value.item(), **{name: float(detail) for name, detail in loss.details.items()}}
        means, factor = ranks.mean(list(found.values()), loss.weight)
        if not math.isfinite(means[0]):
            _refuse("loss", means[0], step, names)
        parallel.reduce_gradients(task.module, micro == config.accumulate - 1)
        (loss.value * factor / config.accumulate).backward()
        for name, mean in zip(found, means, strict=True):
            totals[name] = totals.get(name, 0.0) + mean / config.accumulate
    norm = parallel.clip_gradients(trained, config.clip_norm, ranks)
    if not math.isfinite(norm):
        _refuse("gradient", norm, step, names)
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {**totals, "grad_norm": norm}


def _refuse(what: str, value: float, step: int, names: list[str]) -> None:
    raise EdgewamError(
        f"The {what} is {value} at step {step}, batch {'; '.join(names)}. Training stopped before the weights were touched; "
        "the last checkpoint is good: check these data for extreme values, or lower the learning rate, and run again."
    )


@contextmanager
def _stop_requests(ranks: Ranks) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one acts as usual.  Only the main thread can listen.

    With several ranks all that come mean the same: a launcher repeats what the terminal sent.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: Any) -> None:
        event.set()
        if ranks.world == 1:
            signal.signal(number, previous[number])

    for number in previous:
        signal.signal(number, request)
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

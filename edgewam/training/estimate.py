"""What a training is going to take: memory part by part, seconds per optimiser step, checkpoint and artifact on disk.

Weights, gradients, optimiser state and average follow from the parameter groups; activations are counted in real losses
at small batch sizes and scaled, which is exact because a tensor either grows with the batch or does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgewam.core.errors import ArtifactError
from edgewam.core.estimate import Duration, available_bytes, process_bytes, timed, timed_at, timed_here
from edgewam.data.dataset import Dataset
from edgewam.training.checkpoint import CHECKPOINT, read_header
from edgewam.training.loop import LoopConfig, Task
from edgewam.training.memory import TensorMemory, loss_memory, scaled
from edgewam.training.optimizers import ParameterGroup, WeightAverage, build_optimizers, state_bytes
from edgewam.training.weights import StoredDtype

# A loss at batch 1 of this many weights still takes only seconds on two cores; larger models are not tried.
TRIAL_PARAMETERS = 300_000_000
PROCESS = "Python and libraries"
# What glibc keeps back and kernels need besides tensors: half an hour into a training of `small` the process held 1.5 times the
# bytes of its live activations (2.14 GB of anonymous memory); after one step it is 1.1 times.
ALLOCATOR_SHARE = 0.5
_COUNTED = (1, 2)  # batch sizes at which memory is counted


@dataclass(frozen=True)
class BatchKind:
    """One kind of batch of a task: its share of all batches, its size, and how to make one of another size."""

    share: float
    size: int
    make: Callable[[int], Any]


@dataclass(frozen=True)
class TrainingCost:
    """Bytes and seconds of a training.

    weights: of all modules that are loaded; average and optimizer: its shadows; gradients: of what is trained.
    step: the largest batch's tensors, None when it was not tried.  step_seconds: of one optimiser step, likewise.
    """

    weights: int
    average: int
    optimizer: int
    gradients: int
    step: TensorMemory | None
    step_seconds: float | None
    checkpoint: int

    def memory(self, before: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """Moment -> parts; `before` is what the process holds all the time besides the training."""
        always = {**before, "weights": self.weights, "average": self.average, "optimiser": self.optimizer}
        found = {"saving a checkpoint": always | {"copy and file image": 2 * self.checkpoint}}
        if self.step is not None:
            extra = {
                "saved activations": self.step.saved_bytes,
                "temporaries": self.step.peak_bytes - self.step.saved_bytes,
                "allocator": round(ALLOCATOR_SHARE * self.step.peak_bytes),
            }
            found["optimiser step"] = always | {"gradients": self.gradients} | extra
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """What the numbers leave out."""
        return () if self.step is not None else ("activations are not counted: the model is too large to try here",)


def process_parts(dataset: Dataset | None = None) -> dict[str, int]:
    """What this process holds already, which the real step will hold too.  Call it before anything else is loaded."""
    values = sum(array.nbytes for array in dataset.index.vectors.values()) if dataset else 0
    return {PROCESS: max(0, process_bytes() - values)} | ({"states and actions": values} if dataset else {})


def training_cost(task: Task, loop: LoopConfig, kinds: Sequence[BatchKind], further: Sequence[nn.Module] = ()) -> TrainingCost:
    """Count and time one task.  Its weights and gradients are as before afterwards.

    Args:
        task: on `loop.device`.
        loop: how it will be trained.
        kinds: every kind of batch that it draws.
        further: modules beside the task's own that stay loaded.
    """
    groups = task.parameter_groups()
    trained = [p for group in groups for p in group.parameters.values()]
    weights = module_bytes(task.module, *further)
    model = sum(tensor_bytes(t) for t in task.module.state_dict().values())
    average = 0 if loop.ema_decay is None else model
    optimizer = sum(state_bytes(group) for group in groups)
    gradients = sum(map(tensor_bytes, trained))
    step, seconds = None, None
    if _is_cheap(task.module, weights + average + optimizer + gradients):
        owned = [t for module in (task.module, *further) for t in (*module.parameters(), *module.buffers())]
        step = _step_memory(task, loop, kinds, owned)
        seconds = _step_seconds(task, loop, kinds, groups)
    for parameter in trained:
        parameter.grad = None
    return TrainingCost(weights, average, optimizer, gradients, step, seconds, model + average + optimizer)


def duration(cost: TrainingCost, loop: LoopConfig, work: Path) -> tuple[Duration, str]:
    """How long the training still takes, and the work in words; a checkpoint in `work` is gone on from."""
    step, elapsed = progress_of(work)
    each = f"{cost.step_seconds:.2g} s a step, {timed_here()}" if cost.step_seconds is not None else "a step was not timed"
    begun = f"; step {step} is done" if step else ""
    if loop.minutes is not None:
        left = max(0.0, 60 * loop.minutes - elapsed)
        about = f", about {left / cost.step_seconds:.0f} optimiser steps" if cost.step_seconds else ""
        limit = f" or {loop.steps} optimiser steps" if loop.steps else ""
        return Duration(left, f"the limit; {each}"), f"{loop.minutes:g} minutes{limit}{about}{begun}"
    assert loop.steps is not None
    seconds = None if cost.step_seconds is None else max(0, loop.steps - step) * cost.step_seconds
    return Duration(seconds, each), f"{loop.steps} optimiser steps{begun}"


def progress_of(work: Path) -> tuple[int, float]:
    """(steps, seconds) of the checkpoint in a training's working directory; zeros without one."""
    try:
        header = read_header(work / CHECKPOINT) if (work / CHECKPOINT).exists() else {"step": 0, "elapsed_s": 0.0}
    except ArtifactError:  # the training itself will say so; nothing of it counts
        return 0, 0.0
    return int(header["step"]), float(header["elapsed_s"])


def stored_bytes(tensors: Mapping[str, Tensor], dtype: StoredDtype) -> int:
    """Bytes of tensors in an artifact: floating ones in `dtype`."""
    size = {"float32": 4, "float16": 2, "bfloat16": 2}[dtype]
    return sum(t.numel() * (size if t.is_floating_point() else t.element_size()) for t in tensors.values())


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of the values, also of a tensor without memory."""
    return tensor.numel() * tensor.element_size()


def module_bytes(*modules: nn.Module) -> int:
    """Bytes of all parameters and buffers, each counted once."""
    found = {id(t): tensor_bytes(t) for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(found.values())


def _is_cheap(module: nn.Module, known_bytes: int) -> bool:
    if any(p.is_meta for p in module.parameters()):
        return False
    return sum(p.numel() for p in module.parameters()) <= TRIAL_PARAMETERS and known_bytes < available_bytes() / 2


def _loss(task: Task, loop: LoopConfig, batch: Any) -> Tensor:
    with torch.autocast(torch.device(loop.device).type, torch.bfloat16, enabled=loop.autocast):
        return task.loss(batch, torch.Generator().manual_seed(loop.seed))[0]


def _step_memory(task: Task, loop: LoopConfig, kinds: Sequence[BatchKind], owned: Sequence[Tensor]) -> TensorMemory:
    """Of the kind that needs most.  The first loss makes the gradients, which are counted apart."""
    _loss(task, loop, kinds[0].make(1)).backward()  # type: ignore[no-untyped-call]
    found = []
    for kind in kinds:
        small, large = (loss_memory(lambda n=n, k=kind: _loss(task, loop, k.make(n)), owned) for n in _COUNTED)  # type: ignore[misc]
        found.append(scaled(small, large, _COUNTED, kind.size))
    return max(found, key=lambda memory: memory.peak_bytes)


def _step_seconds(task: Task, loop: LoopConfig, kinds: Sequence[BatchKind], groups: list[ParameterGroup]) -> float:
    """Micro-batches at their share, and one update with rates of zero, so that the weights stay."""
    micro = 0.0
    for kind in kinds:
        micro += kind.share * timed_at(lambda n, k=kind: _loss(task, loop, k.make(n)).backward(), kind.size)  # type: ignore[misc]
    optimizers = build_optimizers(groups)
    for optimizer in optimizers.values():
        optimizer.param_groups[0]["lr"] = 0.0

    def update() -> None:
        for optimizer in optimizers.values():
            optimizer.step()
        if loop.ema_decay is not None:
            WeightAverage(task.module, loop.ema_decay).update(task.module, 0)

    return loop.accumulate * micro + timed(update)

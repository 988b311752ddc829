"""How much memory a piece of torch code takes in tensors: what autograd saves, and the most that is alive at once.

Counted from the tensors' storages, so it is the same on every machine.  Scratch space inside a kernel and what the
allocator keeps back are not seen; on a CPU they came to a tenth of the whole in a training of `small`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgewam.core.estimate import Line


@dataclass(frozen=True)
class TensorMemory:
    """saved_bytes: held from forward to backward.  peak_bytes: the most that was alive at once, those included."""

    saved_bytes: int
    peak_bytes: int


def loss_memory(loss: Callable[[], Tensor], owned: Iterable[Tensor]) -> TensorMemory:
    """Run `loss()` and its backward pass and count; tensors in `owned` (weights) and gradients that exist do not count."""
    known = {tensor.untyped_storage()._cdata for tensor in owned}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with AliveTensors() as alive:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            value = loss()
        value.backward()  # type: ignore[no-untyped-call]
    return TensorMemory(sum(saved.values()), max(alive.peak, sum(saved.values())))


def run_memory(run: Callable[[], object]) -> int:
    """The most bytes of new tensors that are alive at once during a call."""
    with AliveTensors() as alive:
        run()
    return alive.peak


def scaled(small: TensorMemory, large: TensorMemory, sizes: tuple[int, int], batch: int) -> TensorMemory:
    """From two batch sizes to a third: every tensor is either of fixed size or proportional to the batch."""
    lines = [
        Line.through(sizes[0], a, sizes[1], b)
        for a, b in ((small.saved_bytes, large.saved_bytes), (small.peak_bytes, large.peak_bytes))
    ]
    saved, peak = (round(line.at(batch)) for line in lines)
    return TensorMemory(saved, max(saved, peak))


class AliveTensors(TorchDispatchMode):
    """Follows the storage of every tensor that an operation makes until it is freed: bytes now, and the most so far."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.now = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key in self._seen or key in given:  # a view, or written in place
                    continue
                self._seen.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, key, storage.nbytes())
        return result

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

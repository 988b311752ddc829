"""The processes that train together: who they are, what they agree on, and how they end as one.

Whatever starts them (torchrun, and with it SLURM, Kubernetes or Ray) sets RANK, WORLD_SIZE, LOCAL_RANK and MASTER_*; without
WORLD_SIZE there is one rank, for which nothing here does anything.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from edgewam.core.errors import EdgewamError

TIMEOUT = timedelta(minutes=30)  # of a collective: rank 0 may be writing or measuring meanwhile
LAST_WORDS = timedelta(seconds=5)  # how long ranks that fail wait for each other
_STARTED_BY = ("RANK", "MASTER_ADDR", "MASTER_PORT")
T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Which rows of a batch a rank computes: contiguous blocks whose sizes differ by one at most."""

    rank: int = 0
    world: int = 1

    def rows(self, total: int) -> slice:
        """Rows of a batch of `total`.  EdgewamError when a rank would have none."""
        if total < self.world:
            raise EdgewamError(
                f"A batch of {total} cannot be divided among {self.world} ranks: each needs a row at least. "
                f"Use a batch of {self.world} or more, or at most {total} ranks."
            )
        return slice(total * self.rank // self.world, total * (self.rank + 1) // self.world)


WHOLE = Share()


@dataclass(frozen=True)
class Ranks:
    """This process among all of them.  `device` is where its tensors live."""

    share: Share
    device: torch.device
    store: dist.Store | None = field(default=None, repr=False)

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.share.world

    @property
    def is_main(self) -> bool:
        """Whether this rank writes logs and artifacts."""
        return self.share.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum over the ranks of each value, the same float64 on all of them."""
        if self.world == 1:
            return list(values)
        reduced = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(reduced)
        return reduced.tolist()

    def mean(self, values: Sequence[float], weight: float) -> tuple[list[float], float]:
        """Means over all ranks of values that are means over `weight` samples here, and what a loss here counts in them.

        Gradients are averaged over ranks, so a rank's loss is scaled by its weight over the mean weight: numerator and
        denominator are summed apart, whatever each rank's share and padding are.
        """
        if self.world == 1:
            return list(values), 1.0
        *numerators, denominator = self.sum([*(value * weight for value in values), weight])
        return [numerator / denominator for numerator in numerators], weight * self.world / denominator

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank."""
        return self.sum([float(here)])[0] > 0

    def of_main(self, value: float) -> float:
        """The value that rank 0 has."""
        return self.sum([value if self.is_main else 0.0])[0]

    def wait(self) -> None:
        """Until every rank is here."""
        self.sum([0.0])  # on the CPU, which a barrier of a group that also serves GPUs would not be


ALONE = Ranks(WHOLE, torch.device("cpu"))


def join_ranks(device: str = "cpu") -> Ranks:
    """The ranks that this process was started with; joins their process group the first time, unless the launcher has.

    With CUDA each rank takes the device of its LOCAL_RANK, which "cuda" then means everywhere.  A launcher's own group must
    serve both kinds of tensors ("cpu:gloo,cuda:nccl").

    Raises:
        EdgewamError: the launcher's variables are incomplete, or there are fewer devices than local ranks.
    """
    kind = torch.device(device).type
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks(WHOLE, torch.device(device))
    if missing := [name for name in _STARTED_BY if name not in os.environ]:
        raise EdgewamError(
            f"WORLD_SIZE is {world} but {', '.join(missing)} is not set. Start with torchrun, or unset WORLD_SIZE for one."
        )
    if torch.device(device).index is not None:
        raise EdgewamError(f"'{device}' is one device, but there are {world} ranks. Say {kind}: each rank takes its own.")
    if kind == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise EdgewamError(
                f"Local rank {local} has no GPU of its own: this machine shows {torch.cuda.device_count()}. "
                "Start as many processes per node as it has GPUs (torchrun --nproc-per-node)."
            )
        torch.cuda.set_device(local)
    global _joined
    if not dist.is_initialized():
        store, rank, world = next(dist.rendezvous("env://"))
        store.set_timeout(TIMEOUT)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=world,
            timeout=TIMEOUT,
        )
        _joined = dist.PrefixStore("edgewam", store)
    return Ranks(Share(dist.get_rank(), dist.get_world_size()), torch.device(kind), _joined)


_joined: dist.Store | None = None  # a process belongs to one group for all its life


@contextmanager
def one_voice(ranks: Ranks) -> Iterator[None]:
    """End all ranks when one fails, with one message: the first rank to raise keeps its exception, the others exit with 1.

    A rank that dies takes its connections with it, so the others do not wait for it (NCCL: until the launcher ends them).
    May be nested.
    """
    try:
        yield
    except Exception as error:
        if ranks.store is None:
            raise
        if not _is_first(ranks, ranks.store):
            sys.exit(1)
        if isinstance(error, RuntimeError) and not isinstance(error, EdgewamError) and _is_lost_connection(error):
            raise EdgewamError(
                "Another rank ended without a word; its own log or the launcher's says why. "
                "Run the same command again to go on from the last checkpoint."
            ) from error
        raise


def one_message(function: Callable[..., T]) -> Callable[..., T]:
    """Decorates what every rank calls with a first argument that has `loop.device`: all of it is under `one_voice`."""

    @wraps(function)
    def call(config: Any, *arguments: Any, **options: Any) -> T:
        with one_voice(join_ranks(config.loop.device)):
            return function(config, *arguments, **options)

    return call


def _is_first(ranks: Ranks, store: dist.Store) -> bool:
    """Whether no other rank has failed before.  Rank 0, whose process may hold the store, lets the others ask first."""
    me = str(ranks.share.rank)
    try:
        store.set_timeout(LAST_WORDS)
        first = store.compare_set("first", "", me).decode() == me
        store.set(f"failed {me}", "")
    except RuntimeError:  # rank 0 was killed, and the store with it
        return ranks.share.rank == 1
    end = time.monotonic() + LAST_WORDS.total_seconds()
    all_of_them = [f"failed {rank}" for rank in range(ranks.world)]
    while ranks.is_main and not store.check(all_of_them) and time.monotonic() < end:
        time.sleep(0.05)
    return first


def _is_lost_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()

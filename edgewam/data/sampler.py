"""The order in which training sees windows: a pure function of (seed, epoch, position), for any number of ranks.

Every epoch visits every start of every episode once.  A batch holds windows of one history length, on all ranks alike,
so that no history masks arise and ranks take equally long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from edgewam.core.errors import ContractError
from edgewam.data.dataset import Dataset
from edgewam.data.windows import Ints, WindowBatch, WindowLayout, make_windows, num_valid_history


@dataclass(frozen=True)
class _EpochPlan:
    """The choices of one epoch: window w is (episode[w], start[w], ...), row p of `batches` is global batch p."""

    episode: Ints
    start: Ints
    offset: Ints
    spacing: Ints
    batches: Ints  # [num_batches, world_size * batch_size]


@dataclass
class WindowSampler:
    """Endless batches of windows.  `batch_size` is per rank; at one position no two ranks share a window.

    start_stride: windows start at every n-th control step.  episodes: which ones to use (default: all).
    The last batch of each history length is filled up with windows of that length seen before in the epoch (only a
    length with fewer windows than one batch of all ranks repeats them inside it).
    """

    dataset: Dataset
    layout: WindowLayout
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    start_stride: int = 1
    episodes: Sequence[int] | None = None
    epoch: int = field(default=0, init=False)
    position: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.start_stride < 1 or not 0 <= self.rank < self.world_size:
            raise ContractError(
                f"Bad sampler: batch {self.batch_size}, start stride {self.start_stride}, rank {self.rank} of {self.world_size}."
            )
        chosen = np.arange(self.dataset.num_episodes) if self.episodes is None else np.array(sorted(set(self.episodes)), np.int64)
        if len(chosen) == 0 or chosen[0] < 0 or chosen[-1] >= self.dataset.num_episodes:
            raise ContractError(f"Episodes to train on must be some of 0..{self.dataset.num_episodes - 1}, got {self.episodes}.")
        counts = -(-self.dataset.lengths[chosen] // self.start_stride)
        self._episode = np.repeat(chosen, counts)
        first = np.cumsum(counts) - counts
        self._start = (np.arange(counts.sum()) - np.repeat(first, counts)) * self.start_stride
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    @property
    def num_windows(self) -> int:
        """Windows in an epoch, over all ranks."""
        return len(self._start)

    def num_batches(self, epoch: int) -> int:
        """Batches of one epoch, the same for every rank."""
        return len(self._plan(epoch).batches)

    def batch_at(self, epoch: int, position: int) -> WindowBatch:
        """This rank's batch at one place of the order; the sampler's own place does not move."""
        plan = self._plan(epoch)
        mine = plan.batches[position, self.rank :: self.world_size]
        return make_windows(
            self.dataset, self.layout, plan.episode[mine], plan.start[mine], plan.offset[mine], plan.spacing[mine]
        )

    def __iter__(self) -> Iterator[WindowBatch]:
        """Batches from the present place on, for ever.  `state` after a batch is where the next one begins."""
        while True:
            batch = self.batch_at(self.epoch, self.position)
            self.position += 1
            if self.position == self.num_batches(self.epoch):
                self.epoch, self.position = self.epoch + 1, 0
            yield batch

    def state(self) -> dict[str, Any]:
        """Plain-JSON place in the order, with what the order depends on."""
        return {"epoch": self.epoch, "position": self.position, "order": self._order()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go to a saved place; ContractError when the order is not the one that was saved."""
        if state["order"] != self._order():
            changed = [name for name, value in self._order().items() if state["order"].get(name) != value]
            raise ContractError(
                f"Cannot resume the data order: {', '.join(changed)} changed. Use the same settings and dataset, or start anew."
            )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def _order(self) -> dict[str, Any]:
        layout = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self.layout).items()}
        own = {"seed": self.seed, "batch_size": self.batch_size, "world_size": self.world_size, "start_stride": self.start_stride}
        episodes = sorted(set(self._episode.tolist()))
        return {**own, "layout": layout, "episodes": episodes, "dataset": self.dataset.digest}

    def _make_plan(self, epoch: int) -> _EpochPlan:
        generator = np.random.default_rng([self.seed, epoch])
        episode, start, layout = self._episode, self._start, self.layout
        # an offset never reaches past the episode: at least the first action of a window is real
        room = np.minimum(layout.max_offset, self.dataset.lengths[episode] - 1 - start)
        offset = generator.integers(0, room + 1)
        spacing = generator.choice(np.array(layout.history_spacings or (1,), np.int64), len(start))
        valid = num_valid_history(layout, start, spacing)
        shuffled = generator.permutation(len(start))
        size = self.batch_size * self.world_size
        batches = []
        for length in np.unique(valid):
            group = shuffled[valid[shuffled] == length]
            num_batches = -(-len(group) // size)
            batches.append(np.resize(group, (num_batches, size)))  # np.resize repeats from the front
        every = np.concatenate(batches)
        return _EpochPlan(episode, start, offset, spacing, every[generator.permutation(len(every))])

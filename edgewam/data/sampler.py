"""The order in which training sees windows: a pure function of (seed, epoch, position).

Every epoch visits every start of every episode once.  A batch is that of all ranks together and each rank takes a block of its
rows, so the order is the same for any number of ranks.  It holds windows of one history length: no history masks arise, and
ranks take equally long.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from edgewam.core.errors import ContractError
from edgewam.data.dataset import Dataset
from edgewam.data.windows import Ints, WindowBatch, WindowLayout, make_windows, num_valid_history

ALL_ROWS = slice(None)


@dataclass(frozen=True)
class _EpochPlan:
    """The choices of one epoch: window w is (episode[w], start[w], ...), row p of `batches` is batch p."""

    episode: Ints
    start: Ints
    offset: Ints
    spacing: Ints
    batches: Ints  # [num_batches, batch_size]


@dataclass
class WindowSampler:
    """Endless batches of windows.  `batch_size` counts the rows of all ranks together.

    start_stride: windows start at every n-th control step.  episodes: which ones to use (default: all).
    The last batch of each history length is filled up with windows of that length seen before in the epoch (only a
    length with fewer windows than one batch repeats them inside it).
    """

    dataset: Dataset
    layout: WindowLayout
    batch_size: int
    seed: int
    start_stride: int = 1
    episodes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.start_stride < 1:
            raise ContractError(f"Bad sampler: batch {self.batch_size}, start stride {self.start_stride}; both are at least 1.")
        chosen = np.arange(self.dataset.num_episodes) if self.episodes is None else np.array(sorted(set(self.episodes)), np.int64)
        if len(chosen) == 0 or chosen[0] < 0 or chosen[-1] >= self.dataset.num_episodes:
            raise ContractError(f"Episodes to train on must be some of 0..{self.dataset.num_episodes - 1}, got {self.episodes}.")
        counts = -(-self.dataset.lengths[chosen] // self.start_stride)
        self._episode = np.repeat(chosen, counts)
        first = np.cumsum(counts) - counts
        self._start = (np.arange(counts.sum()) - np.repeat(first, counts)) * self.start_stride
        self._plan = lru_cache(maxsize=2)(self._make_plan)
        self._ends: list[int] = []  # number of batches up to the end of each epoch looked at so far

    @property
    def num_windows(self) -> int:
        """Windows in an epoch."""
        return len(self._start)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task texts of the episodes."""
        return tuple(dict.fromkeys(self.dataset.task(int(episode)) for episode in np.unique(self._episode)))

    def num_batches(self, epoch: int) -> int:
        """Batches of one epoch; drawn history spacings make it differ a little from epoch to epoch."""
        return len(self._plan(epoch).batches)

    def place(self, index: int) -> tuple[int, int]:
        """(epoch, position) of batch number `index` when epochs follow each other without end."""
        while not self._ends or index >= self._ends[-1]:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + self.num_batches(len(self._ends)))
        epoch = bisect_right(self._ends, index)
        return epoch, index - (self._ends[epoch - 1] if epoch else 0)

    def global_batch(self, epoch: int, position: int, rows: slice = ALL_ROWS) -> WindowBatch:
        """The batch at one place of the order, or some rows of it (such as a rank's)."""
        plan = self._plan(epoch)
        chosen = plan.batches[position, rows]
        return make_windows(
            self.dataset, self.layout, plan.episode[chosen], plan.start[chosen], plan.offset[chosen], plan.spacing[chosen]
        )

    def _make_plan(self, epoch: int) -> _EpochPlan:
        generator = np.random.default_rng([self.seed, epoch])
        episode, start, layout = self._episode, self._start, self.layout
        # an offset never reaches past the episode: at least the first action of a window is real
        room = np.minimum(layout.max_offset, self.dataset.lengths[episode] - 1 - start)
        offset = generator.integers(0, room + 1)
        spacing = generator.choice(np.array(layout.history_spacings or (1,), np.int64), len(start))
        valid = num_valid_history(layout, start, spacing)
        shuffled = generator.permutation(len(start))
        batches = []
        for length in np.unique(valid):
            group = shuffled[valid[shuffled] == length]
            num_batches = -(-len(group) // self.batch_size)
            batches.append(np.resize(group, (num_batches, self.batch_size)))  # np.resize repeats from the front
        every = np.concatenate(batches)
        return _EpochPlan(episode, start, offset, spacing, every[generator.permutation(len(every))])

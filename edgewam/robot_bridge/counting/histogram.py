"""Counts of durations in fixed bins: the shape of a run's tail, and quantiles of a run of any length in constant memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# milliseconds; what is beyond the last edge is counted in the last bin.  Fine where a good loop lives, coarse in the tail.
LATENESS_EDGES_MS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0)
AGE_EDGES_MS = tuple(float(edge) for edge in (*range(0, 60, 4), *range(60, 240, 20)))

Samples = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Quantiles:
    """Of n samples, in the unit that the field's name ends with (milliseconds or ticks); all None when there are none."""

    n: int
    p50: float | None = None
    p99: float | None = None
    max: float | None = None


class FineCounts:
    """Samples counted in bins of `resolution` up to `limit`, both in the samples' own unit; n and the largest are exact.

    A quantile is the upper end of the bin that holds the sample of that rank, so it is too large by one resolution at most;
    one that falls beyond the limit is given as the largest sample.  Negative samples count as 0.
    """

    def __init__(self, resolution: int, limit: int) -> None:
        self._resolution = resolution
        self._bins = np.zeros(limit // resolution + 1, np.int64)  # the last one: everything beyond
        self.n = 0
        self._largest = 0

    def add(self, samples: Samples) -> None:
        """Count integer samples [n]."""
        if not len(samples):
            return
        places = np.clip(-(-samples // self._resolution) - 1, 0, len(self._bins) - 1)
        np.add.at(self._bins, places, 1)
        largest = int(samples.max())
        self._largest = max(self._largest, largest) if self.n else largest
        self.n += len(samples)

    def quantile(self, share: float) -> int | None:
        """Smallest value that at least `share` of the samples do not exceed; None without samples."""
        if not self.n:
            return None
        rank = max(1, int(np.ceil(share * self.n)))
        place = int(np.searchsorted(np.cumsum(self._bins), rank))
        return self._largest if place == len(self._bins) - 1 else min(self._largest, (place + 1) * self._resolution)

    def quantiles(self, unit: int) -> Quantiles:
        """p50, p99 and the largest sample, in multiples of `unit`."""
        if not self.n:
            return Quantiles(0)
        found = [self.quantile(0.5), self.quantile(0.99), self._largest]
        return Quantiles(self.n, *(round(value / unit, 3) for value in found if value is not None))


class CoarseCounts:
    """{edges_ms [n + 1], counts [n]} of nanosecond samples; those outside count in the first and the last bin."""

    def __init__(self, edges_ms: tuple[float, ...]) -> None:
        self._edges = np.array(edges_ms)
        self._counts = np.zeros(len(edges_ms) - 1, np.int64)

    def add(self, samples_ns: Samples) -> None:
        """Count samples [n]."""
        inside = np.clip(samples_ns / 1e6, self._edges[0], self._edges[-1])
        self._counts += np.histogram(inside, self._edges)[0]

    def to_json(self) -> dict[str, list[Any]]:
        """Plain data."""
        return {"edges_ms": self._edges.tolist(), "counts": self._counts.tolist()}

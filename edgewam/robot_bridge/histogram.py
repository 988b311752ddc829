"""Counts of durations in fixed bins, so that a run's record shows the shape of its tail and not three quantiles alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# milliseconds; what is beyond the last edge is counted in the last bin.  Fine where a good loop lives, coarse in the tail.
LATENESS_EDGES_MS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0)
AGE_EDGES_MS = tuple(float(edge) for edge in (*range(0, 60, 4), *range(60, 240, 20)))


def histogram(samples_ns: npt.NDArray[np.int64], edges_ms: tuple[float, ...]) -> dict[str, list[Any]]:
    """{edges_ms [n + 1], counts [n]}; samples outside are counted in the first and the last bin, so that none is lost."""
    edges = np.array(edges_ms)
    inside = np.clip(samples_ns / 1e6, edges[0], edges[-1])
    return {"edges_ms": list(edges_ms), "counts": np.histogram(inside, edges)[0].tolist()}

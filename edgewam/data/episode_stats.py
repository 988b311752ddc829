"""Per-feature statistics in the form LeRobot stores: min, max, mean, std, count and five quantiles.

Vectors are measured exactly.  Images are measured through 256-bin histograms per channel, which are exact for uint8,
small to keep per episode and simply added up for the whole dataset.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.data.schema import Images

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STAT_NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)

Stats = dict[str, npt.NDArray[Any]]
Histogram = npt.NDArray[np.int64]


def vector_stats(values: npt.NDArray[Any]) -> Stats:
    """Statistics over the rows of [T, D] (or [T], read as D = 1); every entry has shape [D], `count` [1]."""
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    stats: Stats = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    stats["count"] = np.array([len(rows)], np.int64)
    return stats | dict(zip(QUANTILES, np.quantile(rows, list(QUANTILES.values()), axis=0), strict=True))


def image_histogram(images: Images) -> Histogram:
    """Pixel counts [3, 256] of uint8 [T, H, W, 3]."""
    return np.stack([np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)]).astype(np.int64)


def image_stats(histogram: Histogram, num_frames: int) -> Stats:
    """Statistics of pixels scaled to 0..1; every entry has shape [3, 1, 1], `count` [1] is the number of frames measured."""
    levels = np.arange(256) / 255.0
    total = histogram.sum(1, keepdims=True)
    cumulated = np.cumsum(histogram, 1)
    mean = (histogram * levels).sum(1, keepdims=True) / total
    stats: Stats = {
        "min": levels[(histogram > 0).argmax(1)],
        "max": levels[255 - (histogram[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt((histogram * (levels - mean) ** 2).sum(1, keepdims=True) / total),
    }
    stats |= {name: levels[(cumulated >= q * total).argmax(1)] for name, q in QUANTILES.items()}
    return {name: value.reshape(3, 1, 1) for name, value in stats.items()} | {"count": np.array([num_frames], np.int64)}

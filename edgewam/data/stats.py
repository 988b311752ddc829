"""Mean and standard deviation of states and actions, and the `dataset_stats.json` that carries them (facts/aha_wam.md 4.3).

The file form is the released one: {"state" | "action": {"default": {"global_mean": [...], "global_std": [...]}}}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgewam.core.artifacts import write_json
from edgewam.core.errors import ArtifactError, ContractError
from edgewam.core.observation import Normalizer
from edgewam.data.dataset import Dataset

STD_FLOOR = 1e-2  # joints that hardly move must not turn noise of 1e-3 rad into the target (facts/small_policy.md 3)
_KEY = "default"


@dataclass(frozen=True, eq=False)
class DatasetStats:
    """One normaliser for states and one for actions, float32 [D] each, robot units."""

    state: Normalizer
    action: Normalizer


def measure_stats(dataset: Dataset, episodes: Sequence[int] | None = None, std_floor: float = STD_FLOOR) -> DatasetStats:
    """Statistics over all steps of `episodes` (default: all), standard deviations raised to at least `std_floor`."""
    chosen = list(range(dataset.num_episodes)) if episodes is None else list(episodes)
    if not chosen:
        raise ContractError("Statistics need at least one episode.")
    return DatasetStats(
        _measure([dataset.states(episode) for episode in chosen], std_floor),
        _measure([dataset.actions(episode) for episode in chosen], std_floor),
    )


def _measure(arrays: Sequence[np.ndarray], std_floor: float) -> Normalizer:
    rows = np.concatenate(arrays).astype(np.float64)
    return Normalizer(rows.mean(0).astype(np.float32), np.maximum(rows.std(0), std_floor).astype(np.float32))


def write_stats(path: Path | str, stats: DatasetStats) -> None:
    """Write the released file form atomically."""
    found = {"state": stats.state, "action": stats.action}
    form = {name: {_KEY: {"global_mean": n.mean.tolist(), "global_std": n.std.tolist()}} for name, n in found.items()}
    write_json(Path(path), form)


def read_stats(path: Path | str) -> DatasetStats:
    """Read a released or own file; further entries (min, max, per step) are ignored.

    Raises:
        ArtifactError: missing, unreadable, without these entries, or with values that cannot normalise.
    """
    try:
        data = json.loads(Path(path).read_text())
        found = {name: _normalizer(data[name][_KEY]) for name in ("state", "action")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"Cannot read normalisation statistics from '{path}': {error!r}. Give the dataset_stats.json of these weights."
        ) from error
    return DatasetStats(found["state"], found["action"])


def _normalizer(entry: dict[str, list[float]]) -> Normalizer:
    mean, std = (np.array(entry[name], np.float32) for name in ("global_mean", "global_std"))
    if mean.ndim != 1 or mean.shape != std.shape or not np.isfinite(mean).all() or not (np.isfinite(std) & (std >= 0)).all():
        raise ValueError("global_mean and global_std must be finite vectors of one length, the latter not negative")
    return Normalizer(mean, std)

"""Statistics of states and actions, and the `dataset_stats.json` that carries them (facts/aha_wam.md 4.3).

The file form is the released one: {"state" | "action": {"default": {"global_mean": [...], "global_std": [...], ...}}}.
A file of ours that normalises by min/max says so in "normalization"; released files leave that to the reader.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgewam.core.artifacts import write_json
from edgewam.core.errors import ArtifactError, ContractError
from edgewam.core.observation import Normalizer
from edgewam.data.dataset import Dataset
from edgewam.data.episode_stats import QUANTILES

STD_FLOOR = 1e-2  # joints that hardly move must not turn noise of 1e-3 rad into the target (facts/small_policy.md 3)
Mode = Literal["z-score", "min/max"]
MODES: tuple[Mode, ...] = ("z-score", "min/max")
_KEY, _MODE = "default", "normalization"


@dataclass(frozen=True, eq=False)
class DatasetStats:
    """One normaliser for states and one for actions, float32 [D] each, robot units."""

    state: Normalizer
    action: Normalizer

    def check(self, dataset: Dataset, whose: str = "the statistics") -> None:
        """Raise ContractError unless states and actions of `dataset` are as wide as these."""
        dataset.check_fits(whose, len(self.state.mean), len(self.action.mean))


def measure_stats(
    dataset: Dataset, episodes: Sequence[int] | None = None, std_floor: float = STD_FLOOR, mode: Mode = "z-score"
) -> DatasetStats:
    """Statistics over all steps of `episodes` (default: all), standard deviations raised to at least `std_floor`."""
    rows = _rows(dataset, episodes)
    return DatasetStats(*(_measure(rows[name], std_floor, mode) for name in ("state", "action")))


def _rows(dataset: Dataset, episodes: Sequence[int] | None) -> dict[str, np.ndarray]:
    chosen = list(range(dataset.num_episodes)) if episodes is None else list(episodes)
    if not chosen:
        raise ContractError("Statistics need at least one episode.")
    return {
        "state": np.concatenate([dataset.states(episode) for episode in chosen]),
        "action": np.concatenate([dataset.actions(episode) for episode in chosen]),
    }


def _measure(rows: np.ndarray, std_floor: float, mode: Mode) -> Normalizer:
    if mode == "min/max":
        return Normalizer.from_min_max(rows.min(0), rows.max(0))
    exact = rows.astype(np.float64)
    return Normalizer(exact.mean(0).astype(np.float32), np.maximum(exact.std(0), std_floor).astype(np.float32))


def released_form(dataset: Dataset, std_floor: float = STD_FLOOR) -> dict[str, Any]:
    """Everything a released file holds of whole episodes: mean, std, min, max and the 1 % and 99 % quantiles.

    The entries per step of a window (`stepwise_*`) are left out: no released policy normalises by them.
    """
    found: dict[str, Any] = {}
    for name, rows in _rows(dataset, None).items():
        normalizer = _measure(rows, std_floor, "z-score")
        entry = {"mean": normalizer.mean, "std": normalizer.std, "min": rows.min(0), "max": rows.max(0)}
        entry |= {quantile: np.quantile(rows, QUANTILES[quantile], axis=0) for quantile in ("q01", "q99")}
        found[name] = {_KEY: {f"global_{key}": value.tolist() for key, value in entry.items()}}
    return found | {"num_episodes": dataset.num_episodes, "num_transition": int(dataset.lengths.sum())}


def write_stats(path: Path | str, stats: DatasetStats) -> None:
    """Write the released file form atomically; both normalisers must be of one mode."""
    found = {"state": stats.state, "action": stats.action}
    modes: set[Mode] = {"z-score" if normalizer.limits is None else "min/max" for normalizer in found.values()}
    if len(modes) > 1:
        raise ContractError("States and actions must be normalised alike: both by z-score or both by min/max.")
    form: dict[str, Any] = {name: {_KEY: _entry(normalizer)} for name, normalizer in found.items()}
    write_json(Path(path), form if modes == {"z-score"} else form | {_MODE: "min/max"})


def _entry(normalizer: Normalizer) -> dict[str, list[float]]:
    if normalizer.limits is None:
        return {"global_mean": normalizer.mean.tolist(), "global_std": normalizer.std.tolist()}
    low, high = normalizer.limits
    return {"global_min": low.tolist(), "global_max": high.tolist()}


def read_stats(path: Path | str, mode: Mode | None = None) -> DatasetStats:
    """Read a released or own file; further entries (quantiles, per step) are ignored.

    Args:
        path: the file.
        mode: how the weights were trained; by default what the file says, else z-score, as RoboTwin's were.

    Raises:
        ArtifactError: missing, unreadable, without these entries, or with values that cannot normalise.
    """
    try:
        data = json.loads(Path(path).read_text())
        chosen = mode or data.get(_MODE, "z-score")
        if chosen not in MODES:
            raise ValueError(f"normalization is {chosen!r}, not one of {', '.join(MODES)}")
        found = [_normalizer(_only_key(data[name], name), chosen) for name in ("state", "action")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ArtifactError(
            f"Cannot read normalisation statistics from '{path}': {reason}. Give the dataset_stats.json of these weights."
        ) from error
    return DatasetStats(*found)


def _only_key(entries: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The entry "default", or the only one there is."""
    key = _KEY if _KEY in entries or len(entries) != 1 else next(iter(entries))
    if key not in entries:
        raise ValueError(f"'{name}' has the keys {', '.join(entries) or 'none'} and no '{_KEY}'")
    found: Mapping[str, Any] = entries[key]
    return found


def _normalizer(entry: Mapping[str, Any], mode: Mode) -> Normalizer:
    names = ("global_mean", "global_std") if mode == "z-score" else ("global_min", "global_max")
    first, second = (np.array(entry[name], np.float32) for name in names)
    if first.ndim != 1 or first.shape != second.shape or not len(first) or not np.isfinite([first, second]).all():
        raise ValueError(f"{names[0]} and {names[1]} must be finite vectors of one length")
    if mode == "min/max":
        if (second < first).any():
            raise ValueError("global_max must not be below global_min")
        return Normalizer.from_min_max(first, second)
    if (second < 0).any():
        raise ValueError("global_std must not be negative")
    return Normalizer(first, second)

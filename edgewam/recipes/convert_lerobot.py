"""What LeRobot keeps beside the weights of its Fast-WAM policy: statistics, cameras, and the toggled gripper.

Facts from huggingface/lerobot at 7427f31: `policy_preprocessor.json` lists steps; the step `normalizer_processor` names a
safetensors file with `observation.state.mean`, `action.min`, ... and its `norm_map` says which of them are used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewam.core.errors import ArtifactError

if TYPE_CHECKING:
    from edgewam.core.observation import Normalizer
    from edgewam.data.stats import DatasetStats

PREPROCESSOR = "policy_preprocessor.json"
_STEP = "normalizer_processor"
_PARTS = {"STATE": "observation.state", "ACTION": "action"}
_FIELDS = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max")}


def lerobot_stats(folder: Path) -> DatasetStats | None:
    """Statistics of a LeRobot policy folder, None where it has no preprocessor.

    Raises:
        ArtifactError: the preprocessor is damaged, or normalises in a way that has no counterpart here.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        return None
    from edgewam.data.stats import DatasetStats
    from edgewam.models.checkpoints import open_weights
    from edgewam.models.checkpoints.mapped import mapped

    try:
        step = next(step for step in json.loads(path.read_text())["steps"] if step.get("registry_name") == _STEP)
        modes: Mapping[str, str] = step["config"]["norm_map"]
        values = mapped(open_weights(folder / Path(step["state_file"]).name).entries)
        found = {part: _normalizer(part, modes.get(part, "IDENTITY"), values, path) for part in _PARTS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise ArtifactError(
            f"Cannot read normalisation statistics from '{path}': {error!r}. "
            "Give the dataset_stats.json of these weights with --stats."
        ) from error
    return DatasetStats(found["STATE"], found["ACTION"])


def _normalizer(part: str, mode: str, values: Mapping[str, Any], path: Path) -> Normalizer:
    from edgewam.core.observation import Normalizer

    if mode not in _FIELDS:
        raise ArtifactError(f"'{path}' normalises {part} by {mode}. Only {' and '.join(_FIELDS)} have a counterpart here.")
    first, second = (values[f"{_PARTS[part]}.{name}"].float().numpy().copy() for name in _FIELDS[mode])
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"'{_PARTS[part]}' has statistics of shapes {first.shape} and {second.shape}")
    return Normalizer(first, second) if mode == "MEAN_STD" else Normalizer.from_min_max(first, second)


def lerobot_composition(config: Mapping[str, Any] | None) -> str | None:
    """How many cameras LeRobot puts side by side, as the name of a composition; None for other files."""
    features = (config or {}).get("input_features") or {}
    cameras = sum(name.startswith("observation.images.") for name in features)
    return {1: "single", 2: "side_by_side"}.get(cameras)


def lerobot_notes(config: Mapping[str, Any] | None) -> list[str]:
    """What LeRobot does to actions after the network and nothing here does."""
    toggled = (config or {}).get("toggle_action_dimensions")
    return [f"LeRobot turns actions {toggled} into -sign(2a - 1) after de-normalising; nothing here does"] if toggled else []

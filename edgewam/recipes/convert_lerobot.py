"""What LeRobot keeps beside the weights of its Fast-WAM policy: statistics, cameras, sampler steps, and the toggled gripper.

Facts from huggingface/lerobot at 7427f31: `policy_preprocessor.json` lists steps; the step `normalizer_processor` names a
safetensors file with `observation.state.mean`, `action.min`, ... and its `norm_map` says which of them are used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewam.core.errors import ArtifactError, ContractError

if TYPE_CHECKING:
    from edgewam.core.observation import Normalizer
    from edgewam.data.stats import DatasetStats, Mode

PREPROCESSOR = "policy_preprocessor.json"
_STEP = "normalizer_processor"
_PARTS = {"STATE": "observation.state", "ACTION": "action"}
_FIELDS = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max")}
_MODES: Mapping[str, Mode] = {"MEAN_STD": "z-score", "MIN_MAX": "min/max"}
_CAMERA = "observation.images."
_SIDES = ("front", "wrist")  # of the composition side_by_side, left to right


def lerobot_normalization(folder: Path) -> Mode | None:
    """How a LeRobot policy folder uses statistics of actions; None where it has no preprocessor or does not say.

    Raises:
        ArtifactError: the preprocessor is damaged.
    """
    path = folder / PREPROCESSOR
    return _MODES.get(_step(path)[1].get("ACTION", "")) if path.is_file() else None


def _step(path: Path) -> tuple[str, dict[str, str]]:
    """Of the step that normalises: its file of statistics, and how STATE and ACTION use them."""
    try:
        found = next(step for step in json.loads(path.read_text())["steps"] if step.get("registry_name") == _STEP)
        return Path(found["state_file"]).name, dict(found["config"]["norm_map"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError) as error:
        raise ArtifactError(
            f"'{path}' does not say how states and actions are normalised: {error!r}. Give the dataset_stats.json of these "
            "weights with --stats, and --normalization."
        ) from error


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

    state_file, modes = _step(path)
    try:
        values = mapped(open_weights(folder / state_file).entries)
        found = {part: _normalizer(part, modes.get(part, "IDENTITY"), values, path) for part in _PARTS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"Cannot read normalisation statistics from '{path}': {error!r}. "
            "Give the dataset_stats.json of these weights with --stats."
        ) from error
    return DatasetStats(found["STATE"], found["ACTION"])


def _normalizer(part: str, mode: str, values: Mapping[str, Any], path: Path) -> Normalizer:
    import numpy as np

    from edgewam.core.observation import Normalizer

    if mode not in _FIELDS:
        raise ArtifactError(f"'{path}' normalises {part} by {mode}. Only {' and '.join(_FIELDS)} have a counterpart here.")
    first, second = (values[f"{_PARTS[part]}.{name}"].float().numpy().copy() for name in _FIELDS[mode])
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"'{_PARTS[part]}' has statistics of shapes {first.shape} and {second.shape}")
    if mode == "MEAN_STD":
        return Normalizer(first, second)
    found = Normalizer.from_min_max(first, second)
    if still := np.flatnonzero(found.is_still).tolist():
        raise ArtifactError(
            f"'{path}' normalises {part} by {mode}, but its dimensions {still} do not move: LeRobot makes them -1, edgewam (as "
            "upstream) 0. Give the dataset_stats.json of these weights with --stats."
        )
    return found


def lerobot_composition(config: Mapping[str, Any] | None) -> str | None:
    """How many cameras LeRobot puts side by side, as the name of a composition; None for other files.

    Raises:
        ContractError: more cameras than a composition here has beside each other.
    """
    cameras = _cameras(config)
    if len(cameras) > len(_SIDES):
        raise ContractError(
            f"LeRobot puts {', '.join(cameras)} beside each other, which no composition of edgewam does. Compose the picture "
            "where the cameras are read, and give --composition single."
        )
    return {1: "single", 2: "side_by_side"}.get(len(cameras))


def lerobot_steps(config: Mapping[str, Any] | None) -> int | None:
    """Sampler steps of LeRobot's configuration; None for other files."""
    steps = (config or {}).get("num_inference_steps")
    return None if steps is None else int(steps)


def refuse_other_template(config: Mapping[str, Any] | None) -> None:
    """Raise ContractError where instructions were put into another sentence than that of `models.text`."""
    from edgewam.models.text import PROMPT_TEMPLATE

    template = (config or {}).get("prompt_template", PROMPT_TEMPLATE)
    if template != PROMPT_TEMPLATE:
        raise ContractError(
            f"This policy reads instructions as '{template}'; edgewam embeds them as '{PROMPT_TEMPLATE}', which would mean "
            "something else to it. It converts to bare weights only: leave out --vae and --stats."
        )


def _cameras(config: Mapping[str, Any] | None) -> list[str]:
    """In the order in which LeRobot puts them beside each other."""
    return sorted(name for name in (config or {}).get("input_features") or {} if name.startswith(_CAMERA))


def lerobot_notes(config: Mapping[str, Any] | None) -> list[str]:
    """Which camera goes where, and what LeRobot does to actions after the network and nothing here does."""
    toggled, cameras, said = (config or {}).get("toggle_action_dimensions"), _cameras(config), []
    if len(cameras) == len(_SIDES):
        places = " and ".join(f"'{camera}' is called '{side}'" for camera, side in zip(cameras, _SIDES, strict=True))
        said.append(f"from left to right on the picture, {places} here")
    if toggled:
        said.append(f"LeRobot turns actions {toggled} into -sign(2a - 1) after de-normalising; nothing here does")
    return said

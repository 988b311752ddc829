"""What shapes cannot tell of a released file: options, a configuration file in upstream's form, or LeRobot's config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from edgewam.core.errors import ArtifactError, ContractError

# our size -> where upstream's configurations and LeRobot's config.json have it
_PLACES: Mapping[str, tuple[str, ...]] = {
    "head_dim": ("video_dit_config.attn_head_dim",),
    "text_len": ("golden_sizes.context_len", "context_len", "tokenizer_max_len"),
    "horizon": ("action_horizon",),
    "chunk_size": ("action_chunk_size",),
    "memory_slots": ("num_history_frames",),
    "rope_stride": ("video_rope_frame_stride", "action_video_freq_ratio", "golden_sizes.action_video_freq_ratio"),
    "num_queries": ("chunk_kv_editor_num_queries",),
    "shift": ("scheduler.infer_shift", "action_scheduler.infer_shift"),
    "train_shift": ("scheduler.train_shift", "action_scheduler.train_shift"),
    "lambda_video": ("loss.lambda_video",),
    "lambda_action": ("loss.lambda_action_prior", "loss.lambda_action"),
}
_IMAGE = ("golden_sizes.image_hw", "image_hw", "image_size")


def sizes_in(path: Path) -> dict[str, Any]:
    """Sizes in a JSON file: upstream's or LeRobot's configuration, or plainly {size: number} with our names.

    Raises:
        ArtifactError: no JSON object.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"Cannot read the configuration '{path}': {error}. Give a JSON file.") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"The configuration '{path}' is no JSON object. Give upstream's configuration, or sizes by name.")
    return sizes_from(data)


def sizes_from(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same of what was read already."""
    if not any(isinstance(value, dict) for value in data.values()):
        return dict(data)
    found = {}
    for size, places in _PLACES.items():
        values = [value for place in places if (value := _at(data, place)) is not None]
        if values:
            found[size] = values[0]
    image = next((value for place in _IMAGE if (value := _at(data, place)) is not None), None)
    if image is not None:
        found["image_height"], found["image_width"] = map(int, image)
    return found


def _at(data: Mapping[str, Any], place: str) -> Any:
    value: Any = data
    for name in place.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def config_of(family: Any, shapes: Mapping[str, tuple[int, ...]], configured: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """A family's configuration: sizes from shapes, then from configuration files where the family has them, then from options.

    Raises:
        ContractError: something is ambiguous or contradictory, or the family has no such size.
    """
    known = {field.name for field in fields(family.Config)}
    if foreign := sorted(set(given) - known):
        raise ContractError(f"A {family.FAMILY} has no {', '.join(foreign)}. Leave that out.")
    return family.sizes_of(shapes, **{**{name: v for name, v in configured.items() if name in known}, **given})


def image_size(text: str) -> dict[str, int]:
    """`384x320` as height and width."""
    try:
        height, width = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise ContractError(f"'{text}' is no image size. Give HEIGHTxWIDTH in pixels, such as 384x320.") from None
    return {"image_height": height, "image_width": width}

"""Options of a conversion: what shapes cannot tell of a file, from the command line or a configuration; and what is senseless."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewam.core.artifacts import MANIFEST
from edgewam.core.errors import ArtifactError, ContractError

if TYPE_CHECKING:
    from edgewam.recipes.convert import Conversion

# our size -> where upstream's configurations and LeRobot's config.json have it
_PLACES: Mapping[str, tuple[str, ...]] = {
    "head_dim": ("video_dit_config.attn_head_dim",),
    "text_len": ("golden_sizes.context_len", "context_len", "tokenizer_max_len"),
    "horizon": ("action_horizon",),
    "chunk_size": ("action_chunk_size",),
    "memory_slots": ("num_history_frames",),
    "rope_stride": ("video_rope_frame_stride", "action_video_freq_ratio", "golden_sizes.action_video_freq_ratio"),
    "num_queries": ("chunk_kv_editor_num_queries",),
    "execute_steps": ("n_action_steps",),
    "shift": ("sigma_shift", "scheduler.infer_shift", "action_scheduler.infer_shift"),
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
    if _is_flat(data) and (unknown := sorted(set(data) - _names())):
        raise ArtifactError(f"The configuration '{path}' has {', '.join(unknown)}, which no family has. Correct or remove that.")
    return sizes_from(data)


def sizes_from(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same of what was read already."""
    found = dict(data) if _is_flat(data) else {}
    for size, places in _PLACES.items():
        values = [value for place in places if (value := _at(data, place)) is not None]
        if values:
            found[size] = values[0]
    image = next((value for place in _IMAGE if (value := _at(data, place)) is not None), None)
    if image is not None:
        found["image_height"], found["image_width"] = map(int, image)
    return found


def _is_flat(data: Mapping[str, Any]) -> bool:
    """Whether it is {size: number}, and not an upstream configuration with its sections."""
    return not any(isinstance(value, dict) for value in data.values())


def _names() -> set[str]:
    """Our sizes of all families, and upstream's names of them."""
    from edgewam.core import plugins

    families = (plugins.load("family", name) for name in plugins.names("family"))
    own = {size.name for family in families if hasattr(family, "Config") for size in fields(family.Config)}
    return own.union(_IMAGE, *_PLACES.values())


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


def refuse_senseless(kind: str, is_policy: bool, plan: Conversion) -> None:
    """Options that would be ignored."""
    for_policies = {
        "--vae": plan.vae, "--stats": plan.stats, "--text": plan.text, "--prompt": plan.prompts, "--config": plan.config,
        "--composition": plan.composition, "sizes": plan.given,
    }  # fmt: skip
    if not is_policy and (useless := [name for name, value in for_policies.items() if value]):
        raise ContractError(f"'{plan.source}' is of kind {kind}, which takes no {', '.join(useless)}. Leave that out.")
    if kind != "umt5" and plan.tokenizer:
        raise ContractError(f"'{plan.source}' is of kind {kind}; --tokenizer belongs to a text encoder. Leave that out.")
    if plan.stats and not plan.vae:
        raise ContractError("A policy needs its VAE and its statistics. Add --vae VAE, or leave both out for bare weights.")
    if (plan.text or plan.prompts) and not plan.vae:
        raise ContractError("Instructions belong to a policy. Add --vae VAE and --stats dataset_stats.json.")
    if plan.prompts and not plan.text:
        raise ContractError("Only a text encoder can embed --prompt. Add --text with an encoder artifact or a cache directory.")


def refuse_to_overwrite(plan: Conversion) -> None:
    """Writing replaces a directory: it must be an artifact or empty, and hold nothing that is read."""
    if (plan.source / MANIFEST).exists():
        raise ContractError(f"'{plan.source}' is an artifact already. To write upstream's file of it, add --format upstream.")
    out = plan.out.resolve()
    inputs = (plan.source, plan.vae, plan.stats, plan.tokenizer, plan.config, plan.text if plan.text != "small" else None)
    if inside := [str(path) for path in inputs if path is not None and Path(path).resolve().is_relative_to(out)]:
        raise ContractError(f"'{plan.out}' would be replaced, but it holds '{inside[0]}'. Give another directory to write.")
    if plan.out.is_dir() and any(plan.out.iterdir()) and not (plan.out / MANIFEST).exists():
        raise ContractError(f"'{plan.out}' is a directory that is no artifact, and is not replaced. Give another to write.")

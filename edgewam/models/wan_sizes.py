"""Sizes of the two Wan transformers from the shapes of a checkpoint's tensors: what AHA-WAM and Fast-WAM share.

Names are those of `checkpoints.Release.tensors`, group.key.  Shapes do not tell heads apart, nor images, horizons and prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewam.core.errors import ContractError

Shapes = Mapping[str, tuple[int, ...]]

HEAD_DIM = 128  # of every released checkpoint
_VIDEO, _ACTION = "mot.mixtures.video", "mot.mixtures.action"
# size -> (tensor, axis)
_PLACES = {
    "video_dim": (f"{_VIDEO}.patch_embedding.weight", 0),
    "latent_dim": (f"{_VIDEO}.patch_embedding.weight", 1),
    "video_ffn_dim": (f"{_VIDEO}.blocks.0.ffn.0.weight", 0),
    "action_hidden_dim": (f"{_ACTION}.action_encoder.weight", 0),
    "action_dim": (f"{_ACTION}.action_encoder.weight", 1),
    "action_ffn_dim": (f"{_ACTION}.blocks.0.ffn.0.weight", 0),
    "text_dim": (f"{_VIDEO}.text_embedding.0.weight", 1),
    "freq_dim": (f"{_VIDEO}.time_embedding.0.weight", 1),
    "proprio_dim": ("proprio_encoder.weight", 1),
}


def transformer_sizes(
    shapes: Shapes, given: Mapping[str, Any], further: Mapping[str, tuple[str, int]] | None = None
) -> dict[str, Any]:
    """Fields of a configuration: what the shapes tell, heads, and everything in `given`, which must not contradict them.

    Args:
        shapes: tensor name -> shape.
        given: sizes that the user knows; what no shape tells is passed on.
        further: sizes of one family only, name -> (tensor, axis).

    Raises:
        ContractError: a tensor is missing or of another rank, heads are ambiguous, or `given` contradicts the shapes.
    """
    found = {name: _axis(shapes, *place) for name, place in {**_PLACES, **(further or {})}.items()}
    found["num_layers"] = _layers(shapes)
    if wrong := {name: found[name] for name in found if given.get(name, found[name]) != found[name]}:
        told = ", ".join(f"{name} {value}, not {given[name]}" for name, value in wrong.items())
        raise ContractError(f"The checkpoint's tensors have {told}. Leave these out: they are read from the checkpoint.")
    width = _axis(shapes, f"{_VIDEO}.blocks.0.self_attn.q.weight", 0)
    head_dim = given.get("head_dim", HEAD_DIM if width % HEAD_DIM == 0 else None)
    if head_dim is None or width % head_dim:
        raise ContractError(
            f"The attention is {width} wide; heads of {head_dim or HEAD_DIM} do not divide it, and shapes do not tell how wide "
            "one is. Give head_dim as the checkpoint was trained (edgewam convert: --head-dim)."
        )
    return {**given, **found, "head_dim": head_dim, "num_heads": width // head_dim}


def _axis(shapes: Shapes, name: str, axis: int) -> int:
    shape = shapes.get(name)
    if shape is None or len(shape) <= axis:
        what = "is missing" if shape is None else f"has the shape {list(shape)}"
        raise ContractError(
            f"The checkpoint's tensor '{name}' {what}, so its sizes cannot be read. Is it whole, and of this family? "
            "See what it holds with: edgewam inspect FILE"
        )
    return shape[axis]


def _layers(shapes: Shapes) -> int:
    """Both transformers have as many."""
    count = {part: len({n.removeprefix(f"{part}.blocks.").split(".")[0] for n in shapes if n.startswith(f"{part}.blocks.")})
             for part in (_VIDEO, _ACTION)}  # fmt: skip
    if len(set(count.values())) != 1:
        raise ContractError(
            f"The checkpoint has {count[_VIDEO]} video layers and {count[_ACTION]} action layers; both must agree."
        )
    return count[_VIDEO]

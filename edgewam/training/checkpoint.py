"""Checkpoints of a running training: one safetensors file with weights, average and optimiser state, and JSON in its header.

One file, so that replacing it is one rename: a reader or a restart sees the old checkpoint or the new one, whatever
happens in between.  There is no random state in it because the loop draws everything from (seed, step).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from edgewam.core.artifacts import replaced_file
from edgewam.core.errors import ArtifactError, EdgewamError

CHECKPOINT = "checkpoint.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class Progression:
    """How far a training is: `step` optimiser steps done in `elapsed_s` seconds of training time, over all its runs."""

    step: int
    elapsed_s: float


def write_checkpoint(
    path: Path,
    module: nn.Module,
    average: Mapping[str, Tensor] | None,
    optimizers: Mapping[str, torch.optim.Optimizer],
    progression: Progression,
    config: Mapping[str, Any],
) -> None:
    """Write the whole training state to `path`, atomically.

    Raises:
        EdgewamError: the disk is full or not writable; the checkpoint that was there before is untouched.
    """
    tensors = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in (average or {}).items()}
    for group, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{group}.{index}.{key}": value for key, value in state.items()}
    header = {"format": FORMAT, "step": progression.step, "elapsed_s": progression.elapsed_s, "config": dict(config)}
    data = save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, {"edgewam": json.dumps(header)}
    )
    try:
        with replaced_file(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise EdgewamError(
            f"Cannot write the checkpoint '{path}' ({len(data) / 1e6:.0f} MB) at step {progression.step}: {error}. "
            "The checkpoint before it is untouched: free some space and run the same command again to go on from there."
        ) from error


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a checkpoint: format, step, elapsed_s, config.  ArtifactError when it is not one."""
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["edgewam"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ArtifactError(
            f"'{path}' is no readable training checkpoint: {error}. Remove it to start this training anew."
        ) from error
    if header.get("format") != FORMAT:
        raise ArtifactError(f"'{path}' has checkpoint format {header.get('format')}; this version reads {FORMAT}.")
    return dict(header)


def read_weights(path: Path, average: bool = True) -> dict[str, Tensor]:
    """Weights of a checkpoint: the average where there is one (and `average` is set), else the last ones."""
    read_header(path)
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        prefix = "average." if average and any(name.startswith("average.") for name in names) else "model."
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}


def restore(
    path: Path,
    module: nn.Module,
    average: Mapping[str, Tensor] | None,
    optimizers: Mapping[str, torch.optim.Optimizer],
    config: Mapping[str, Any],
) -> Progression:
    """Put a checkpoint back into module, average and optimisers (in place) and return how far it was.

    Raises:
        ArtifactError: unreadable, of another configuration (the message names the fields) or of another model.
    """
    header = read_header(path)
    ours = json.loads(json.dumps(dict(config)))
    theirs = header["config"]
    if differ := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
        detail = ", ".join(f"{key}: {theirs.get(key)} there, {ours.get(key)} now" for key in differ)
        raise ArtifactError(
            f"'{path}' belongs to another configuration ({detail}). Use another output directory or the same settings."
        )
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    _copy_into(path, module.state_dict(), tensors, "model.")
    if average is not None:
        _copy_into(path, average, tensors, "average.")
    for group, optimizer in optimizers.items():
        saved: dict[int, dict[str, Tensor]] = {}
        prefix = f"optimizer.{group}."
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                index, key = name.removeprefix(prefix).split(".", 1)
                saved.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": saved, "param_groups": optimizer.state_dict()["param_groups"]})
    return Progression(int(header["step"]), float(header["elapsed_s"]))


def _copy_into(path: Path, state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], prefix: str) -> None:
    names = {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
    if names != set(state):
        raise ArtifactError(
            f"'{path}' holds another model: {sorted(names ^ set(state))[:4]} differ. Use another output directory."
        )
    for name, tensor in state.items():
        value = tensors[prefix + name]
        if value.shape != tensor.shape:
            raise ArtifactError(f"'{path}' holds '{name}' of shape {list(value.shape)}, the model has {list(tensor.shape)}.")
        tensor.copy_(value)

"""Checkpoints of a running training: weights, average and optimiser state of all ranks, replaced as a whole.

`checkpoint.json` says how far the training is and which of two directories beside it holds the tensors, as safetensors shards
written by torch.distributed.checkpoint; replacing that one file by a rename is what makes a checkpoint the current one.
Any number of ranks reads what any other number wrote.  There is no random state: the loop draws everything from (seed, step).
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from edgewam.core.artifacts import write_json
from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.training.ranks import ALONE, Ranks

CHECKPOINT = "checkpoint.json"
FORMAT = 2
_SLOTS = ("checkpoint.a", "checkpoint.b")  # the one that is not current is written next
_FORMER = "checkpoint.safetensors"  # format 1


@dataclass(frozen=True)
class Progression:
    """How far a training is: `step` optimiser steps done in `elapsed_s` seconds of training time, over all its runs."""

    step: int
    elapsed_s: float


def has_checkpoint(path: Path) -> bool:
    """Whether there is a training to go on with.  ArtifactError when it is one that an earlier version wrote."""
    if not path.exists() and (former := path.parent / _FORMER).exists():
        raise ArtifactError(
            f"'{former}' was written by an earlier version, whose trainings this one does not continue. "
            "Finish it with that version, or remove the file to start anew."
        )
    return path.exists()


def write_checkpoint(
    path: Path,
    module: nn.Module,
    average: Mapping[str, Tensor] | None,
    optimizers: Mapping[str, torch.optim.Optimizer],
    progression: Progression,
    config: Mapping[str, Any],
    ranks: Ranks = ALONE,
) -> None:
    """Write the whole training state, of which each rank holds its rows, and make it the current one.

    Raises:
        EdgewamError: the disk is full or not writable; the checkpoint that was there before is untouched.
    """
    tensors = _module_state(module, average)
    for group, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{group}.{index}.{key}": value for key, value in state.items()}
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    slot = path.parent / _SLOTS[int(ranks.of_main(_free_slot(path)))]  # other nodes may still see an older file
    header = {"format": FORMAT, "step": progression.step, "elapsed_s": progression.elapsed_s, "config": dict(config)}
    try:
        if ranks.is_main:
            shutil.rmtree(slot, ignore_errors=True)
            slot.mkdir(parents=True)
        ranks.wait()
        with _single_process_is_fine():
            writer = HuggingFaceStorageWriter(str(slot), save_distributed=True)
            dcp.save(tensors, storage_writer=writer, no_dist=ranks.world == 1)
        if ranks.is_main:
            files = {file.name: file.stat().st_size for file in sorted(slot.iterdir())}
            _sync(slot)
            write_json(path, {**header, "shards": slot.name, "files": files})
    except (OSError, CheckpointException) as error:
        if ranks.is_main:
            shutil.rmtree(slot, ignore_errors=True)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        raise EdgewamError(
            f"Cannot write the checkpoint '{path}' ({size / 1e6:.0f} MB) at step {progression.step}: {_reason(error)}. "
            "The checkpoint before it is untouched: free some space and run the same command again to go on from there."
        ) from error
    if ranks.is_main:  # the new one is current: nothing that fails from here on may remove it
        try:
            _sync(path.parent)
        except OSError as error:
            message = f"Cannot flush '{path.parent}' to disk: {error}. Look at that disk, then run the same command again."
            raise EdgewamError(message) from error
        for other in _SLOTS:
            if other != slot.name:
                shutil.rmtree(path.parent / other, ignore_errors=True)
    ranks.wait()


def read_header(path: Path) -> dict[str, Any]:
    """What `checkpoint.json` says: format, step, elapsed_s, config, shards, files (name -> bytes).

    Raises:
        ArtifactError: it is no checkpoint, or a shard is missing or truncated.
    """
    try:
        header = dict(json.loads(path.read_text()))
        if header.get("format") != FORMAT:
            raise ArtifactError(f"'{path}' has checkpoint format {header.get('format')}; this version reads {FORMAT}.")
        slot = path.parent / str(header["shards"])
        sizes = {slot / name: int(size) for name, size in dict(header["files"]).items()}
    except (OSError, KeyError, ValueError) as error:
        raise ArtifactError(
            f"'{path}' is no readable training checkpoint: {error}. Remove it to start this training anew."
        ) from error
    for file, size in sizes.items():
        found = file.stat().st_size if file.exists() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise ArtifactError(
                f"'{path}' is no readable training checkpoint: '{file}' {what}. Copy it again, or remove '{path}' to start anew."
            )
    return header


def read_weights(path: Path, average: bool = True) -> dict[str, Tensor]:
    """Whole weights of a checkpoint: the average where there is one (and `average` is set), else the last ones."""
    averaged = average and any(name.startswith("average.") for name in _stored(path))
    return read_tensors(path, "average." if averaged else "model.")


def read_tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """The whole tensors whose names begin with `prefix`, without it."""
    tensors = {name: _empty(entry) for name, entry in _stored(path).items() if name.startswith(prefix)}
    _load(path, tensors, ALONE)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def restore(
    path: Path,
    module: nn.Module,
    average: Mapping[str, Tensor] | None,
    optimizers: Mapping[str, torch.optim.Optimizer],
    config: Mapping[str, Any],
    ranks: Ranks = ALONE,
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
    stored = _stored(path)
    tensors = _module_state(module, average)
    _check_same(path, tensors, optimizers, stored)
    states = {group: _optimizer_state(f"optimizer.{group}.", optimizer, stored) for group, optimizer in optimizers.items()}
    for group, state in states.items():
        tensors |= {f"optimizer.{group}.{index}.{key}": value for index, kept in state.items() for key, value in kept.items()}
    _load(path, tensors, ranks)
    for group, optimizer in optimizers.items():
        optimizer.load_state_dict({"state": states[group], "param_groups": optimizer.state_dict()["param_groups"]})
    return Progression(int(header["step"]), float(header["elapsed_s"]))


def _module_state(module: nn.Module, average: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    tensors = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    return tensors | {f"average.{name}": tensor for name, tensor in (average or {}).items()}


def _optimizer_state(
    prefix: str, optimizer: torch.optim.Optimizer, stored: Mapping[str, TensorStorageMetadata]
) -> dict[int, dict[str, Tensor]]:
    """Uninitialised tensors of what is stored, by parameter: those of a parameter's shape are placed as it is."""
    parameters = optimizer.param_groups[0]["params"]
    found: dict[int, dict[str, Tensor]] = {}
    for name, entry in stored.items():
        if name.startswith(prefix):
            index, key = name.removeprefix(prefix).split(".", 1)
            parameter = parameters[int(index)].detach()
            same = entry.size == parameter.shape
            found.setdefault(int(index), {})[key] = torch.empty_like(parameter) if same else _empty(entry)
    return found


def _check_same(
    path: Path,
    state: Mapping[str, Tensor],
    optimizers: Mapping[str, torch.optim.Optimizer],
    stored: Mapping[str, TensorStorageMetadata],
) -> None:
    """ArtifactError unless weights, average and optimisers are those of this model."""
    kept = {name.rsplit(".", 1)[0] for name in stored if name.startswith("optimizer.")}
    ours = {f"optimizer.{name}.{index}" for name, o in optimizers.items() for index in range(len(o.param_groups[0]["params"]))}
    names = sorted({name for name in stored if not name.startswith("optimizer.")} ^ set(state)) + sorted(kept - ours)
    if names:
        raise ArtifactError(f"'{path}' holds another model: {names[:4]} differ. Use another output directory.")
    for name, tensor in state.items():
        if stored[name].size != tensor.shape:
            sizes = f"{list(stored[name].size)}, the model has {list(tensor.shape)}"
            raise ArtifactError(f"'{path}' holds '{name}' of shape {sizes}. Use another output directory.")


def _stored(path: Path) -> Mapping[str, TensorStorageMetadata]:
    """Name -> shape and type of every tensor of a checkpoint."""
    with _readable(path):
        return HuggingFaceStorageReader(str(_shards(path))).read_metadata().state_dict_metadata  # type: ignore[return-value]


def _load(path: Path, tensors: dict[str, Tensor], ranks: Ranks) -> None:
    with _readable(path), _single_process_is_fine():
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(_shards(path))), no_dist=ranks.world == 1)


def _shards(path: Path) -> Path:
    return path.parent / str(read_header(path)["shards"])


def _empty(entry: TensorStorageMetadata) -> Tensor:
    return torch.empty(entry.size, dtype=entry.properties.dtype)


def _free_slot(path: Path) -> int:
    try:
        return 1 - _SLOTS.index(read_header(path)["shards"])
    except (ArtifactError, ValueError):
        return 0


def _sync(directory: Path) -> None:
    """Flush the names in a directory to disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, CheckpointException) as error:
        raise ArtifactError(
            f"'{path}' is no readable training checkpoint: {_reason(error)}. Remove it to start this training anew."
        ) from error


@contextmanager
def _single_process_is_fine() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)
        yield


def _reason(error: BaseException) -> str:
    """What went wrong, by rank where torch.distributed.checkpoint collected it."""
    if not isinstance(error, CheckpointException):
        return str(error)
    return "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in sorted(error.failures.items()))

"""Weights on disk in our own format: safetensors, in one file or in shards, and a JSON file with family and sizes.

What is read stays memory-mapped: a model of 15 GB costs nothing before its values are used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgewam.core.artifacts import file_digest, replaced_file, write_json
from edgewam.core.errors import ArtifactError
from edgewam.models.checkpoints.entries import Entry
from edgewam.models.checkpoints.files import open_weights
from edgewam.models.checkpoints.mapped import mapped
from edgewam.models.checkpoints.shards import INDEX, SHARD_BYTES, Source, write_shards

WEIGHTS, SIZES = "model.safetensors", "model.json"
STORAGE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def fit(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a model, or give a model on the meta device its first real ones; dtypes are the model's.

    Raises:
        ArtifactError: names or shapes differ.
    """
    expected = model.state_dict()
    problems = [
        f"'{name}' is {list(tensors[name].shape)} but the model has {list(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    problems += [f"'{name}' is missing" for name in expected if name not in tensors]
    problems += [f"'{name}' is not part of the model" for name in tensors if name not in expected]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ArtifactError(f"{source} does not fit this model: {shown}. Use the configuration that it was trained with.")
    is_meta = any(tensor.is_meta for tensor in expected.values())
    ready = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()} if is_meta else tensors
    model.load_state_dict(ready, assign=is_meta)


def save(
    model: nn.Module,
    directory: Path | str,
    *,
    family: str,
    config: Mapping[str, Any],
    storage: str = "float32",
    metadata: Mapping[str, Any] | None = None,
    base: Path | str | None = None,
) -> None:
    """Write `model.safetensors` in the storage dtype and `model.json` (family, sizes, free `metadata`) into a directory.

    With `base`, a directory that `save` wrote, only tensors that differ from it are stored: a student of which one expert
    learned needs no second copy of the rest.  `read` takes the others from there and checks that they are the same ones.

    Raises:
        ValueError: an unknown storage dtype.
        ArtifactError: a base that cannot be read.
    """
    if storage not in STORAGE:
        raise ValueError(f"Unknown storage dtype '{storage}'. Available: {', '.join(STORAGE)}.")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (t.to(STORAGE[storage]) if t.is_floating_point() else t).contiguous() for name, t in model.state_dict().items()
    }
    sizes = {"family": family, "config": config, "storage": storage, "metadata": dict(metadata or {})}
    if base is not None:
        below = read(base, family).tensors
        tensors = {name: tensor for name, tensor in tensors.items() if name not in below or not _same(tensor, below[name])}
        path = os.path.relpath(Path(base).resolve(), directory.resolve())
        sizes["base"] = {"path": path, "sha256": weights_digest(base)}
    with replaced_file(directory / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_json(directory / SIZES, sizes)
    (directory / INDEX).unlink(missing_ok=True)  # of shards that were here before


def write_model(
    directory: Path,
    tensors: Mapping[str, Source],
    *,
    family: str,
    config: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
    upstream: Mapping[str, Any] | None = None,
    limit: int = SHARD_BYTES,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Write what `save` writes from tensors that are not in memory, in shards of at most `limit` bytes.

    upstream: what the released form needs besides the tensors, kept in `model.json` (see `upstream_of`).
    """
    write_shards(directory, tensors, limit, report)
    dtypes = Counter(source.dtype for source in tensors.values())
    sizes = {
        "family": family, "config": dict(config), "storage": dtypes.most_common(1)[0][0],
        "metadata": dict(metadata or {}), "upstream": dict(upstream or {}),
    }  # fmt: skip
    write_json(directory / SIZES, sizes)


def upstream_of(directory: Path | str) -> Mapping[str, Any]:
    """What `write_model` was given as `upstream`; empty for a model that was not imported."""
    found: Mapping[str, Any] = json.loads((Path(directory) / SIZES).read_text()).get("upstream", {})
    return found


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


@dataclass(frozen=True)
class Stored:
    """Our own format as read: family name, sizes, metadata and tensors in their storage dtype."""

    family: str
    config: Mapping[str, Any]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def read(directory: Path | str, family: str | None = None) -> Stored:
    """Read what `save` wrote.

    Raises:
        ArtifactError: files missing, truncated, not ours, or of another family than asked for.
    """
    directory = Path(directory)
    sizes, entries = _headers(directory)
    stored = Stored(sizes["family"], sizes["config"], sizes["metadata"], mapped(entries))
    if family is not None and stored.family != family:
        raise ArtifactError(f"'{directory}' holds a model of family '{stored.family}', but '{family}' is needed here.")
    return stored


def weights_file(directory: Path) -> Path:
    """The file that holds the weights, or the index of its shards."""
    return directory / INDEX if (directory / INDEX).is_file() else directory / WEIGHTS


def weights_digest(directory: Path | str) -> str:
    """sha256 of a model's weights: of the file, or of index and shards one after the other.

    Raises:
        ArtifactError: a shard is missing or damaged.
    """
    path = weights_file(Path(directory))
    if path.name == WEIGHTS:
        return file_digest(path)
    shards = dict.fromkeys(entry.path for entry in open_weights(path).entries.values())
    return hashlib.sha256("".join(file_digest(file) for file in (path, *shards)).encode()).hexdigest()


def entries_of(directory: Path | str) -> Mapping[str, Entry]:
    """Where the tensors of a saved model are, those of its base included; errors are those of `read`."""
    return _headers(Path(directory))[1]


def _headers(directory: Path) -> tuple[Mapping[str, Any], Mapping[str, Entry]]:
    weights = weights_file(directory)
    for name in (SIZES, weights.name):
        if not (directory / name).is_file():
            raise ArtifactError(
                f"'{directory}' lacks '{name}', so it holds no saved model. Give the directory of a trained model."
            )
    try:
        sizes = json.loads((directory / SIZES).read_text())
        missing = {"family", "config", "metadata"} - sizes.keys()
        entries = open_weights(weights).entries
    except (OSError, ValueError, AttributeError, ArtifactError) as error:
        raise ArtifactError(
            f"The model in '{directory}' is truncated or damaged: {error} Copy it again or save it again."
        ) from error
    if missing:
        raise ArtifactError(f"'{directory / SIZES}' is damaged: it lacks {sorted(missing)}. Save the model again.")
    if base := sizes.get("base"):
        below = _base_entries(directory, base, sizes["family"])
        entries = {**below, **entries}
    return sizes, entries


def _base_entries(directory: Path, base: Mapping[str, str], family: str) -> Mapping[str, Entry]:
    path = directory / base["path"]
    if not weights_file(path).is_file():
        raise ArtifactError(f"'{directory}' stores only what differs from '{path}', which is not there. Copy it there too.")
    if weights_digest(path) != base["sha256"]:
        raise ArtifactError(f"'{path}' is not the model that '{directory}' was saved on top of (its digest differs).")
    sizes, entries = _headers(path)
    if sizes["family"] != family:
        raise ArtifactError(f"'{path}' holds a model of family '{sizes['family']}', but '{family}' is needed here.")
    return entries

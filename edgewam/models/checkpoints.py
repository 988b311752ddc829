"""Weights on disk: the released `.pt` layout, and our own (safetensors plus a JSON file).

Released files are read with `weights_only=True`; nothing here runs code from a file.  Small deviations that the release
itself tolerates are repaired with a warning; anything else is an ArtifactError that says what was found.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgewam.core.artifacts import file_digest, replaced_file, write_json
from edgewam.core.errors import ArtifactError

WEIGHTS, SIZES = "model.safetensors", "model.json"
STORAGE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_BRANCH = "mot.action_branch_embedding"
_QUERIES = "chunk_obs_query_encoder.base_queries"


@dataclass(frozen=True)
class Release:
    """A released file: `tensors` named group.key, and the rest (`step`, `torch_dtype`, `ode_metadata`, ...) as stored."""

    tensors: Mapping[str, Tensor]
    extra: Mapping[str, Any] = field(default_factory=dict)


def read_release(path: Path | str) -> Release:
    """Read a released checkpoint; tensors keep their dtype, and large files stay memory-mapped.

    Raises:
        ArtifactError: missing, truncated, not a checkpoint, or one without a `mot` group.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"There is no checkpoint at '{path}'. Give the path of the released .pt file.")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # broken bytes lead torch to almost any exception type
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtifactError(
            f"'{path}' ({path.stat().st_size} bytes) is truncated or no plain tensor checkpoint: {reason} Download it again."
        ) from error
    if not isinstance(stored, dict) or not isinstance(stored.get("mot"), dict):
        found = f"the keys {sorted(map(str, stored))[:8]}" if isinstance(stored, dict) else f"a {type(stored).__name__}"
        hint = " It is a legacy video-only file (`dit`)." if isinstance(stored, dict) and "dit" in stored else ""
        raise ArtifactError(f"'{path}' holds {found}, but an AHA-WAM or Fast-WAM checkpoint has a group 'mot'.{hint}")
    tensors: dict[str, Tensor] = {}
    extra: dict[str, Any] = {}
    for group, content in stored.items():
        if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
            tensors |= {f"{group}.{key}": value for key, value in content.items()}
        else:
            extra[group] = content
    return Release(tensors, extra)


def write_release(model: nn.Module, path: Path | str, extra: Mapping[str, Any] | None = None) -> None:
    """Write the released layout: one group per top-level module, and `extra` entries (plain values) beside them."""
    groups: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        group, key = name.split(".", 1)
        groups.setdefault(group, {})[key] = tensor
    with replaced_file(Path(path)) as temporary:
        torch.save(groups | dict(extra or {}), temporary)


def load_release(model: nn.Module, release: Release, source: str = "checkpoint") -> None:
    """Put released tensors into a model of the right size, in the model's dtype.

    Raises:
        ArtifactError: tensors are missing or have other shapes (the first few are named with both shapes).
    """
    fit(model, _repaired(release.tensors, model.state_dict()), source)


def _repaired(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Apply the deviations that the release tolerates, each with a warning."""
    repaired = dict(tensors)
    branch, queries = repaired.get(_BRANCH), repaired.get(_QUERIES)
    if branch is not None and _BRANCH in expected and branch.shape == (1, *expected[_BRANCH].shape[1:]):
        warnings.warn(f"'{_BRANCH}' has one row; it is used as row 1, the action branch.", stacklevel=3)
        repaired[_BRANCH] = torch.cat([torch.zeros_like(branch), branch])
    wanted = expected[_QUERIES].shape[2] if _QUERIES in expected else None
    if queries is not None and wanted not in (None, queries.shape[2]) and queries.shape[3:] == expected[_QUERIES].shape[3:]:
        warnings.warn(f"'{_QUERIES}' has {queries.shape[2]} queries; they are interpolated to {wanted}.", stacklevel=3)
        rows = queries[0].float().transpose(1, 2)
        repaired[_QUERIES] = nn.functional.interpolate(rows, wanted, mode="linear").transpose(1, 2)[None].to(queries.dtype)
    if ignored := sorted(set(repaired) - set(expected)):
        warnings.warn(f"The checkpoint has {len(ignored)} tensors that this model does not use: {ignored[:5]}.", stacklevel=3)
    return {name: tensor for name, tensor in repaired.items() if name in expected}


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
        sizes["base"] = {"path": path, "sha256": file_digest(Path(base) / WEIGHTS)}
    with replaced_file(directory / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_json(directory / SIZES, sizes)


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
    for name in (SIZES, WEIGHTS):
        if not (directory / name).is_file():
            raise ArtifactError(
                f"'{directory}' lacks '{name}', so it holds no saved model. Give the directory of a trained model."
            )
    try:
        sizes = json.loads((directory / SIZES).read_text())
        tensors = load_file(directory / WEIGHTS)
        if base := sizes.get("base"):
            tensors = dict(_read_base(directory, base, sizes["family"])) | tensors
        stored = Stored(sizes["family"], sizes["config"], sizes["metadata"], tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ArtifactError(
            f"The model in '{directory}' is truncated or damaged: {error}. Copy it again or save it again."
        ) from error
    if family is not None and stored.family != family:
        raise ArtifactError(f"'{directory}' holds a model of family '{stored.family}', but '{family}' is needed here.")
    return stored


def _read_base(directory: Path, base: Mapping[str, str], family: str) -> Mapping[str, Tensor]:
    path = directory / base["path"]
    if not (path / WEIGHTS).is_file():
        raise ArtifactError(f"'{directory}' stores only what differs from '{path}', which is not there. Copy it there too.")
    if file_digest(path / WEIGHTS) != base["sha256"]:
        raise ArtifactError(f"'{path}' is not the model that '{directory}' was saved on top of (its digest differs).")
    return read(path, family).tensors

"""Upstream's layout in and out of a network: a torch.save dict with one group per top-level module and plain values beside.

Small deviations that the release itself tolerates are repaired with a warning; anything else is an ArtifactError that
says what was found.  Large files stay memory-mapped.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgewam.core.errors import ArtifactError
from edgewam.models.checkpoints.files import open_weights
from edgewam.models.checkpoints.identify import BRANCH, QUERIES, Checkpoint, identified
from edgewam.models.checkpoints.mapped import mapped
from edgewam.models.checkpoints.shards import Held, Source
from edgewam.models.checkpoints.stored import fit
from edgewam.models.checkpoints.torch_writer import write_torch


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
    found = identified(open_weights(path))
    if not any(name.startswith("mot.") for name in found.tensors):
        raise ArtifactError(_no_policy(found))
    return Release(mapped(found.tensors), found.file.extra)


def _no_policy(found: Checkpoint) -> str:
    keys = found.file.layout or tuple(found.file.entries)
    hint = " It is a legacy video-only file (`dit`)." if "dit" in keys else ""
    what = f" It is of kind {found.kind}." if found.match and not hint else ""
    return (
        f"'{found.file.path}' holds the keys {sorted(keys)[:8]}, but an AHA-WAM or Fast-WAM checkpoint has a group 'mot'."
        f"{hint}{what}"
    )


def write_release(model: nn.Module, path: Path | str, extra: Mapping[str, Any] | None = None) -> None:
    """Write the released layout: one group per top-level module, and `extra` entries (plain values) beside them."""
    write_upstream({name: Held(tensor) for name, tensor in model.state_dict().items()}, path, extra or {})


def write_upstream(
    tensors: Mapping[str, Source], path: Path | str, extra: Mapping[str, Any], layout: Iterable[str] = (), whole: bool = False
) -> None:
    """Write a torch file of named tensors and plain values, whole or not at all.

    Args:
        tensors: named group.key, or flat where `whole`.
        layout: order of the top-level names; what it does not name comes last.
        whole: tensors are the top level themselves, as in a VAE's file.
    """
    content: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if whole:
            content[name] = tensor
        else:
            group, key = name.split(".", 1)
            content.setdefault(group, {})[key] = tensor
    content |= extra
    layout = tuple(layout)
    order = [name for name in layout if name in content] + [name for name in content if name not in layout]
    write_torch(Path(path), {name: content[name] for name in order})


def load_release(model: nn.Module, release: Release, source: str = "checkpoint") -> None:
    """Put released tensors into a model of the right size, in the model's dtype.

    Raises:
        ArtifactError: tensors are missing or have other shapes (the first few are named with both shapes).
    """
    expected = model.state_dict()
    tensors, said = repaired(release.tensors, {name: tuple(tensor.shape) for name, tensor in expected.items()})
    if ignored := sorted(set(tensors) - set(expected)):
        said.append(f"The checkpoint has {len(ignored)} tensors that this model does not use: {ignored[:5]}.")
    for sentence in said:
        warnings.warn(sentence, stacklevel=2)
    fit(model, {name: tensor for name, tensor in tensors.items() if name in expected}, source)


def repaired(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors with the deviations repaired that the release tolerates, and a sentence about each."""
    changed, said = dict(tensors), []
    branch, queries = changed.get(BRANCH), changed.get(QUERIES)
    if branch is not None and BRANCH in expected and tuple(branch.shape) == (1, *expected[BRANCH][1:]):
        said.append(f"'{BRANCH}' has one row; it is used as row 1, the action branch.")
        changed[BRANCH] = torch.cat([torch.zeros_like(branch), branch])
    if queries is not None and QUERIES in expected and queries.ndim == 4:
        wanted = expected[QUERIES][2]
        if queries.shape[2] != wanted and tuple(queries.shape[3:]) == expected[QUERIES][3:]:
            said.append(f"'{QUERIES}' has {queries.shape[2]} queries; they are interpolated to {wanted}.")
            rows = queries[0].float().transpose(1, 2)
            between = nn.functional.interpolate(rows, wanted, mode="linear")
            changed[QUERIES] = between.transpose(1, 2)[None].to(queries.dtype)
    return changed, said

"""Open a weight file or folder, whatever its format: only headers are read, no tensor and no code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgewam.core.errors import ArtifactError
from edgewam.models.checkpoints.entries import WeightFile, unreadable
from edgewam.models.checkpoints.safetensors_files import INDEX_SUFFIX, read_index, read_safetensors
from edgewam.models.checkpoints.torch_files import read_torch


def open_weights(path: Path | str) -> WeightFile:
    """Headers of a torch file (zip or legacy), a safetensors file, an index of shards, or a folder with one of these.

    Raises:
        ArtifactError: missing, truncated, of another format, or a pickle that asks for code; the message names the file.
    """
    path = Path(path)
    if path.is_dir():
        config = path / "config.json"
        return replace(open_weights(_of_folder(path)), path=path, config=_json(config) if config.is_file() else None)
    if not path.is_file():
        raise ArtifactError(f"There is no checkpoint at '{path}'. Give the path of the released file.")
    if path.name.endswith(INDEX_SUFFIX):
        return read_index(path)
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise unreadable(path, "it is a Git LFS pointer, not the file itself; fetch it with: git lfs pull.")
    if start[8:9] == b"{":
        return read_safetensors(path)
    return read_torch(path)


def _of_folder(folder: Path) -> Path:
    """The one weight file of a folder: an index of shards goes before the shards, model.safetensors before others."""
    for pattern in (f"*{INDEX_SUFFIX}", "model.safetensors", "*.safetensors", "*.pt", "*.pth", "*.bin"):
        found = sorted(path for path in folder.glob(pattern) if not path.name.startswith(("policy_pre", "policy_post")))
        if len(found) == 1:
            return found[0]
        if found:
            raise ArtifactError(
                f"'{folder}' holds several weight files: {', '.join(p.name for p in found[:5])}. Give one of them."
            )
    raise ArtifactError(f"'{folder}' holds no weights (.safetensors, .pt, .pth or .bin). Give the folder or the file that does.")


def _json(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"Cannot read '{path}': {error}. Download it again.") from error
    return data if isinstance(data, dict) else None

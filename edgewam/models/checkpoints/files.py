"""Open a weight file or folder, whatever its format: only headers are read, no tensor and no code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgewam.core.errors import ArtifactError
from edgewam.models.checkpoints.entries import WeightFile, json_object, unreadable
from edgewam.models.checkpoints.safetensors_files import INDEX_SUFFIX, read_index, read_safetensors
from edgewam.models.checkpoints.torch_files import read_torch

MAX_CONFIG_BYTES = 16 << 20


def open_weights(path: Path | str) -> WeightFile:
    """Headers of a torch file (zip or legacy), a safetensors file, an index of shards, or a folder with one of these.

    Raises:
        ArtifactError: missing, truncated, of another format, or a pickle that asks for code; the message names the file.
    """
    path = Path(path)
    if path.is_dir():
        config = path / "config.json"
        return replace(open_weights(_of_folder(path)), path=path, config=_config(config) if config.is_file() else None)
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


def _config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise unreadable(path, "it is larger than any configuration.")
    return json_object(path, path.read_bytes())

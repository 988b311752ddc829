"""What a weight file is, from its headers: kind, sizes, dtypes, step, metadata and whatever is unexpected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SHOWN = 200  # sentences about what is unexpected; a foreign file would fill the screen


def inspect_weights(path: Path) -> dict[str, Any]:
    """Facts as plain JSON; no tensor is read and torch is not imported.

    Raises:
        ArtifactError: missing, truncated, of another format, or a pickle that asks for code.
    """
    from edgewam.models.checkpoints import identify

    found = identify(path)
    groups: dict[str, dict[str, Any]] = {}
    for name, entry in found.tensors.items():
        group = groups.setdefault(_group(name), {"tensors": 0, "values": 0, "bytes": 0, "dtypes": {}})
        group["tensors"] += 1
        group["values"] += entry.numel
        group["bytes"] += entry.nbytes
        group["dtypes"][entry.dtype] = group["dtypes"].get(entry.dtype, 0) + 1
    extra = {name: _readable(value) for name, value in found.file.extra.items()}
    return {
        "path": str(path),
        "kind": "released checkpoint",
        "family": found.kind,
        "format": found.file.format,
        "policy_folder": (found.file.config or {}).get("type"),
        "sizes": dict(found.match.sizes) if found.match else {},
        "values": sum(group["values"] for group in groups.values()),
        "bytes": sum(group["bytes"] for group in groups.values()),
        "groups": groups,
        "step": extra.get("step"),
        "torch_dtype": extra.get("torch_dtype"),
        "ode_metadata": extra.get("ode_metadata"),
        "optimizer": dict(found.file.optimizer) if found.file.optimizer else None,
        "extra": extra,
        "renamed": list(found.renamed),
        "unexpected": found.unexpected[:_SHOWN],
        "num_unexpected": len(found.unexpected),
    }


def _group(name: str) -> str:
    """mot.mixtures.video, proprio_encoder, encoder, blocks, ...: coarse enough for a table."""
    parts = name.split(".")
    if parts[0] == "mot":
        return ".".join(parts[:3] if parts[1:2] == ["mixtures"] else parts[:2])
    return parts[0]


def _readable(value: Any) -> Any:
    """As JSON takes it; what it does not take is named by its type."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, Mapping):
        return {str(key): _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    return f"<{type(value).__name__}>"

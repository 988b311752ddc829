"""Engines that need not be built again: the key of an engine is the full digest of everything that it was built from.

The cache is the bundle that is being replaced: no second copy on the disk, and nothing that outlives what it belongs to.  A key
over less than all weights gave others wrong engines without a word (facts/performance.md 5, row 4).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgewam.core.artifacts import file_digest, read_manifest
from edgewam.core.errors import EdgewamError
from edgewam.runtime.bundle import KIND, STAGES


def engine_key(files: Iterable[Path], *facts: str) -> str:
    """Digest of whole files (graph and all weights) and of what else decides: target, library, exact version, settings."""
    parts = [*facts, *(f"{path.name} {file_digest(path)}" for path in sorted(files))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def taken_from(bundle: Path | None, stage: str, key: str, directory: Path) -> dict[str, Any] | None:
    """Copy the engine of a stage with this key from a bundle into `directory` and return its record; None when there is none.

    A bundle that is damaged, or of another backend, has none: what it was is being replaced.
    """
    if bundle is None:
        return None
    try:
        manifest = read_manifest(bundle, kind=KIND, verify=False)
        records = {entry["stage"]["name"]: entry["record"] for entry in manifest.config["stages"]}
    except (EdgewamError, KeyError, TypeError):
        return None
    record = records.get(stage, {})
    if record.get("key") != key:
        return None
    name = f"{STAGES}/{record['file']}"
    source = bundle / name
    if not source.is_file() or file_digest(source) != manifest.files.get(name):
        return None
    shutil.copyfile(source, directory / record["file"])
    return {**record, "reused": True}

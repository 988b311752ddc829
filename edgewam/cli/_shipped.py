"""The policy `small` that comes with edgewam: what a command works on when no path is given."""

from __future__ import annotations

from pathlib import Path

import edgewam
from edgewam.core.errors import ArtifactError

SMALL = Path(edgewam.__file__).parent / "assets" / "small"
FACTORY = "edgewam.runtime.factory.open_policy"  # how another process opens a bundle as a policy


def shipped(part: str) -> Path:
    """Path of one of its parts: vae, teacher, student, quantized or bundle.

    Raises:
        ArtifactError: this install carries none.
    """
    path = SMALL / part
    if not path.is_dir():
        raise ArtifactError(f"This install of edgewam does not carry '{path}'. Clone the whole repository, or give a path.")
    return path


def or_shipped(path: Path | None, part: str) -> Path:
    """The user's path, or the shipped part when there is none."""
    return shipped(part) if path is None else path

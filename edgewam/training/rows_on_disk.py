"""Large arrays that several processes fill, each its rows, in one file on a disk that they share.

Rows are written through the file, not through a memory map: maps of several machines would write each other's pages.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import ArtifactError


def allocate(path: Path, size_bytes: int, has_rows: bool) -> None:
    """Make the file unless it is there in that size.

    Raises:
        OSError: the disk is too small: here, not in the middle.
        ArtifactError: it should have rows already, which a new one would not.
    """
    if path.exists() and path.stat().st_size == size_bytes:
        return
    if has_rows:
        raise ArtifactError(f"'{path}' is missing or truncated. Delete '{path.parent}' and run the same command again.")
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)


def write_rows(path: Path, parts: Mapping[int, npt.NDArray[np.generic]]) -> None:
    """Put rows [N, ...] at indices of the array, that of the first one -> rows, and flush them to disk."""
    with open(path, "rb+") as file:
        for first, rows in parts.items():
            file.seek(first * rows[:1].nbytes)
            file.write(np.ascontiguousarray(rows).data)
        file.flush()
        os.fsync(file.fileno())

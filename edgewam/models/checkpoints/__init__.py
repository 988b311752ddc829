"""Weights on disk: headers of any file that is known, upstream's layout, and our own (safetensors plus a JSON file).

Nothing here runs code from a file.  What needs torch is imported when it is first used: looking at a file needs none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgewam.models.checkpoints.entries import Entry, WeightFile
from edgewam.models.checkpoints.files import open_weights
from edgewam.models.checkpoints.identify import Checkpoint, identify

if TYPE_CHECKING:
    from edgewam.models.checkpoints.release import Release, load_release, read_release, repaired, write_release, write_upstream
    from edgewam.models.checkpoints.stored import SIZES, STORAGE, WEIGHTS, Stored, entries_of, fit, read, save, upstream_of
    from edgewam.models.checkpoints.stored import write_model as write_model

__all__ = [
    "SIZES",
    "STORAGE",
    "WEIGHTS",
    "Checkpoint",
    "Entry",
    "Release",
    "Stored",
    "WeightFile",
    "entries_of",
    "fit",
    "identify",
    "load_release",
    "open_weights",
    "read",
    "read_release",
    "repaired",
    "save",
    "upstream_of",
    "write_model",
    "write_release",
    "write_upstream",
]

_IN = {
    "release": ("Release", "load_release", "read_release", "repaired", "write_release", "write_upstream"),
    "stored": ("SIZES", "STORAGE", "WEIGHTS", "Stored", "entries_of", "fit", "read", "save", "upstream_of", "write_model"),
}


def __getattr__(name: str) -> Any:
    for module, names in _IN.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")

"""safetensors files as NumPy arrays: the one way tensors enter and leave a bundle, without torch and without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgewam.core.errors import ArtifactError, require
from edgewam.runtime.memory import Array


def load_tensors(path: Path) -> dict[str, Array]:
    """All tensors of a file by name.

    Raises:
        ArtifactError: missing, truncated or not safetensors.
    """
    numpy_api = require("safetensors.numpy", extra="onnx")
    try:
        loaded: dict[str, Array] = numpy_api.load_file(path)
    except Exception as error:  # the package raises its own type, OSError and KeyError for dtypes NumPy lacks
        raise ArtifactError(f"Cannot read '{path}': {error}. Copy the bundle again or compile it again.") from error
    return loaded


def save_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write tensors by name.  safetensors stores bytes in memory order, hence the C-contiguous copies."""
    numpy_api = require("safetensors.numpy", extra="onnx")
    # not save_file: it leaves files that only their owner may read
    path.write_bytes(numpy_api.save({name: np.array(array, order="C") for name, array in tensors.items()}))

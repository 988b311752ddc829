"""One tensor in a file: where its bytes are, and reading them in pieces so that memory stays small.

No torch: headers of a 15 GB file are read before torch would have been imported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgewam.core.errors import ArtifactError

# torch's name of a dtype -> (bytes of a value, safetensors' name)
DTYPES: Mapping[str, tuple[int, str]] = {
    "float64": (8, "F64"), "float32": (4, "F32"), "float16": (2, "F16"), "bfloat16": (2, "BF16"),
    "float8_e4m3fn": (1, "F8_E4M3"), "float8_e5m2": (1, "F8_E5M2"), "int64": (8, "I64"), "int32": (4, "I32"),
    "int16": (2, "I16"), "int8": (1, "I8"), "uint8": (1, "U8"), "bool": (1, "BOOL"),
}  # fmt: skip
FLOATS = ("float32", "float16", "bfloat16")  # what weights of a network may be stored in
MAX_COUNT = 1 << 62  # any side, stride or place of a tensor is below it
PIECE_BYTES = 16 << 20  # read and written at once: large enough for full disk speed, small beside any limit


@dataclass(frozen=True)
class Entry:
    """A tensor's place: its first value is `offset` bytes into `path`; `stride` (in values) is None for row-major order."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return DTYPES[self.dtype][0]

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self.numel * self.itemsize

    @property
    def span(self) -> int:
        """Values from the first to the last in the file, both included."""
        if self.stride is None or not self.numel:
            return self.numel
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    def pieces(self, size: int = PIECE_BYTES) -> Iterator[bytes]:
        """The values in row-major order, at most `size` bytes at once; a tensor with strides comes as one piece.

        Raises:
            ArtifactError: the file ends before the tensor does.
        """
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            if self.stride is not None:
                yield self._gathered(self._exactly(file.read(self.span * self.itemsize), self.span * self.itemsize))
                return
            left = self.nbytes
            while left:
                piece = self._exactly(file.read(min(size, left)), min(size, left))
                left -= len(piece)
                yield piece

    def _exactly(self, data: bytes, wanted: int) -> bytes:
        if len(data) != wanted:
            raise ArtifactError(f"'{self.path}' became shorter while it was read. Download it again.")
        return data

    def _gathered(self, data: bytes) -> bytes:
        values = np.frombuffer(data, f"u{self.itemsize}")
        steps = tuple(step * self.itemsize for step in self.stride or ())
        return np.lib.stride_tricks.as_strided(values, self.shape, steps, writeable=False).tobytes()


@dataclass(frozen=True)
class WeightFile:
    """What the headers of a weight file, or of a folder of them, say.

    Tensors are named group.key as in the file's nested dicts, in its order.  `layout` are the top-level names in order,
    groups and plain values alike; `extra` holds the plain values; `optimizer` counts tensors and bytes that belong to an
    optimiser and are no weights.  `config` is the config.json beside the file, where there is one.
    """

    path: Path
    format: str
    entries: Mapping[str, Entry]
    layout: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, int] | None = None
    config: Mapping[str, Any] | None = None


def json_object(path: Path, data: bytes) -> dict[str, Any]:
    """JSON of another's file, which may be damaged or nested without end.

    Raises:
        ArtifactError: it is no JSON object.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is nested too deep"
        raise unreadable(path, f"its JSON is damaged ({reason}).") from error
    if not isinstance(found, dict):
        raise unreadable(path, "its JSON is no object.")
    return found


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor without gaps."""
    steps, step = [], 1
    for size in reversed(shape):
        steps.append(step)
        step *= size
    return tuple(reversed(steps))


def unreadable(path: Path, reason: str) -> ArtifactError:
    """The error for broken bytes and for files that are no weights."""
    size = path.stat().st_size if path.is_file() else 0
    return ArtifactError(f"'{path}' ({size} bytes) is truncated or no plain tensor checkpoint: {reason} Download it again.")

"""Write safetensors in shards, tensor by tensor: the header follows from shapes, the bytes are copied in pieces.

Memory is that of a piece, whatever the size of the model.  One shard is `model.safetensors`; more get an index in the
Hugging Face form.  Within a shard wider dtypes go first, so that every tensor is aligned; the header keeps the order in
which tensors were given.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np

from edgewam.core.artifacts import write_json
from edgewam.core.errors import ArtifactError, ContractError
from edgewam.models.checkpoints.entries import DTYPES, Entry

if TYPE_CHECKING:
    from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 4 * 10**9
# integers of a float's size, and the bits of its exponent: all of them set are a NaN or an infinity
_EXPONENTS: Mapping[str, tuple[Any, int]] = {
    "float64": (np.uint64, 0x7FF0 << 48), "float32": (np.uint32, 0x7F800000),
    "float16": (np.uint16, 0x7C00), "bfloat16": (np.uint16, 0x7F80),
}  # fmt: skip
_ALIGNMENT = 8  # of the first tensor, as the format's library writes it


class Source(Protocol):
    """A tensor that can be written: dtype and shape are known before its bytes are."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def pieces(self) -> Iterator[bytes]: ...


@dataclass(frozen=True)
class Cast:
    """An entry in another float dtype, converted piece by piece."""

    entry: Entry
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return self.entry.shape

    def pieces(self) -> Iterator[bytes]:
        """The converted bytes."""
        import torch

        from edgewam.models.checkpoints.mapped import TORCH_DTYPES

        for piece in self.entry.pieces():
            values = torch.frombuffer(bytearray(piece), dtype=TORCH_DTYPES[self.entry.dtype]).to(TORCH_DTYPES[self.dtype])
            yield values.view(torch.uint8).numpy().tobytes()


@dataclass(frozen=True)
class Held:
    """A small tensor in memory, such as a repaired one."""

    tensor: Tensor

    @property
    def dtype(self) -> str:
        """torch's name without `torch.`."""
        return str(self.tensor.dtype)[6:]

    @property
    def shape(self) -> tuple[int, ...]:
        """As a tuple."""
        return tuple(self.tensor.shape)

    def pieces(self) -> Iterator[bytes]:
        """All bytes at once."""
        import torch

        yield self.tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


@dataclass(frozen=True)
class Finite:
    """A tensor of a network that must hold numbers.  name: in `path`, where it comes from."""

    source: Source
    name: str
    path: Path

    @property
    def dtype(self) -> str:
        """As it will be written."""
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """As it will be written."""
        return self.source.shape

    def pieces(self) -> Iterator[bytes]:
        """The bytes of the tensor.

        Raises:
            ArtifactError: a NaN or an infinity, with its place.
        """
        kind, exponent = _EXPONENTS.get(self.dtype, (np.uint8, 0))
        done = 0
        for piece in self.source.pieces():
            if exponent:
                bits = np.frombuffer(piece, kind)
                wrong = (bits & exponent) == exponent
                if wrong.any():
                    place = np.unravel_index(done + int(wrong.argmax()), self.shape) if self.shape else ()
                    raise ArtifactError(
                        f"'{self.path}': the tensor '{self.name}' is not finite in {self.dtype}, first at "
                        f"{[int(index) for index in place]}. Download it again, or convert an earlier checkpoint."
                    )
                done += len(bits)
            yield piece


def nbytes(source: Source) -> int:
    """Bytes that a tensor will take."""
    return math.prod(source.shape) * DTYPES[source.dtype][0]


def write_shards(
    directory: Path,
    tensors: Mapping[str, Source],
    limit: int = SHARD_BYTES,
    report: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Write all tensors into `directory` and return the names of the weight files, an index not among them.

    Args:
        limit: largest number of tensor bytes in a shard; a larger tensor gets a shard of its own.
        report: called with (bytes written, bytes in all).

    Raises:
        ContractError: a limit below one byte.
    """
    if limit < 1:
        raise ContractError(f"Shards of {limit} bytes hold nothing. Give a larger limit.")
    shards = _split(tensors, limit)
    total = sum(map(nbytes, tensors.values()))
    names = [SINGLE] if len(shards) == 1 else [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    done = 0
    for name, shard in zip(names, shards, strict=True):
        with open(directory / name, "wb") as file:
            for written in _write(file, shard):
                done += written
                if report:
                    report(done, total)
            file.flush()
            os.fsync(file.fileno())
    if len(shards) > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return names


def _split(tensors: Mapping[str, Source], limit: int) -> list[dict[str, Source]]:
    shards: list[dict[str, Source]] = [{}]
    filled = 0
    for name, source in tensors.items():
        size = nbytes(source)
        if shards[-1] and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = source
        filled += size
    return shards


def _write(file: BinaryIO, shard: Mapping[str, Source]) -> Iterator[int]:
    """Header and tensors of one shard; yields the bytes of each piece of tensor data when it is written."""
    order = sorted(shard, key=lambda name: -DTYPES[shard[name].dtype][0])  # sorted is stable
    places, end = {}, 0
    for name in order:
        places[name] = [end, end + nbytes(shard[name])]
        end = places[name][1]
    header = {
        name: {"dtype": DTYPES[source.dtype][1], "shape": list(source.shape), "data_offsets": places[name]}
        for name, source in shard.items()
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        for piece in shard[name].pieces():
            file.write(piece)
            yield len(piece)

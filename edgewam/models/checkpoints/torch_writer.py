"""Write torch.save's zip form tensor by tensor: the same file for torch.load, without all tensors in memory.

Entries are stored uncompressed and aligned, so that torch can map them.  Source: torch/serialization.py and the names of
entries in files of torch 2.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgewam.core.artifacts import replaced_file
from edgewam.core.errors import ContractError
from edgewam.models.checkpoints.entries import row_major
from edgewam.models.checkpoints.shards import Source, nbytes

_ALIGNMENT = 64  # of every tensor's first byte, as torch aligns them
_ROOT, _PADDING = "archive", b"FB"  # name of the folder in the zip; tag of an extra field that only fills
_STORAGES = {
    "float64": torch.DoubleStorage, "float32": torch.FloatStorage, "float16": torch.HalfStorage,
    "bfloat16": torch.BFloat16Storage, "int64": torch.LongStorage, "int32": torch.IntStorage, "int16": torch.ShortStorage,
    "int8": torch.CharStorage, "uint8": torch.ByteStorage, "bool": torch.BoolStorage,
}  # fmt: skip


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    numel: int


class _Pickled:
    """A tensor as torch pickles it: a call that makes it from a storage, which is outside of the pickle."""

    def __init__(self, key: str, source: Source) -> None:
        self.storage = _Storage(key, source.dtype, torch.Size(source.shape).numel())
        self.shape = source.shape

    def __reduce__(self) -> Any:
        hooks: OrderedDict[int, Any] = OrderedDict()
        return torch._utils._rebuild_tensor_v2, (self.storage, 0, self.shape, row_major(self.shape), False, hooks)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        """Storages are named, not written."""
        if not isinstance(obj, _Storage):
            return None
        return "storage", _STORAGES[obj.dtype], obj.key, "cpu", obj.numel


def write_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Write nested dicts whose leaves are sources of tensors or plain values, whole or not at all.

    Raises:
        ContractError: a dtype that this form has no name for.
    """
    sources: list[Source] = []
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump(_without_tensors(content, sources))
    with replaced_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, text in (
            ("data.pkl", pickled.getvalue()), (".format_version", b"1"), (".storage_alignment", str(_ALIGNMENT).encode()),
            ("byteorder", b"little"), ("version", b"3\n"),
        ):  # fmt: skip
            archive.writestr(f"{_ROOT}/{name}", text)
        for key, source in enumerate(sources):
            info = zipfile.ZipInfo(f"{_ROOT}/data/{key}")
            info.file_size = nbytes(source)
            info.extra = _filling(archive.start_dir, info.filename)
            with archive.open(info, "w", force_zip64=True) as file:
                for piece in source.pieces():
                    file.write(piece)


def _without_tensors(value: Any, sources: list[Source]) -> Any:
    if isinstance(value, dict):
        return {key: _without_tensors(item, sources) for key, item in value.items()}
    if not hasattr(value, "pieces"):
        return value
    if value.dtype not in _STORAGES:
        raise ContractError(f"torch files have no name for the dtype {value.dtype}. Convert to bf16 or float32 first.")
    sources.append(value)
    return _Pickled(str(len(sources) - 1), value)


def _filling(start: int, name: str) -> bytes:
    """An extra field that moves an entry's data to a multiple of the alignment."""
    sizes = 20  # the field that zipfile itself puts before it: two 64-bit sizes
    missing = -(start + 30 + len(name) + sizes + 4) % _ALIGNMENT
    return _PADDING + struct.pack("<H", missing) + bytes(missing)

"""Headers of torch.save files, the zip form (.pt, .pth since torch 1.6) and the legacy form, without torch and without code.

The pickle inside names storages (see `tensor_pickle`); here they are found in the file.  Source: torch/serialization.py,
read for the layout.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from edgewam.core.errors import ArtifactError
from edgewam.models.checkpoints.bounded_pickle import MAX_PICKLE_BYTES, Refused
from edgewam.models.checkpoints.entries import DTYPES, Entry, WeightFile, row_major, unreadable
from edgewam.models.checkpoints.tensor_pickle import Storage, StoredTensor, TensorUnpickler, plain

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_torch(path: Path) -> WeightFile:
    """Tensors and plain values of a torch.save file.

    Raises:
        ArtifactError: truncated, not of this format, or the pickle asks for code.
    """
    try:
        with open(path, "rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        content, places = _read_zip(path) if is_zip else _read_legacy(path)
        return _weight_file(path, "torch zip" if is_zip else "legacy torch", content, places)
    except ArtifactError:
        raise
    except Refused as error:
        raise unreadable(path, str(error)) from None
    except Exception as error:  # broken bytes lead pickle and zipfile to almost any exception type
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise unreadable(path, f"{reason.rstrip('.')}.") from error


Places = Mapping[str, tuple[int, int]]  # storage key -> first byte in the file, bytes


def _read_zip(path: Path) -> tuple[Any, Places]:
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        infos = {info.filename: info for info in archive.infolist()}
        root = next((name[: -len("data.pkl")] for name in infos if name.split("/", 1)[-1] == "data.pkl"), None)
        if root is None:
            raise Refused("it is a zip archive without data.pkl.")
        if f"{root}byteorder" in infos and _small(archive, infos[f"{root}byteorder"]) != b"little":
            raise Refused("its values are big-endian.")
        content = TensorUnpickler(io.BytesIO(_small(archive, infos[f"{root}data.pkl"])), encoding="utf-8").load()
        places = {}
        for name, info in infos.items():
            if not name.startswith(f"{root}data/"):
                continue
            _refuse_compressed(info)
            file.seek(info.header_offset + 26)  # of the local header: lengths of name and extra field
            name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
            places[name[len(root) + 5 :]] = (info.header_offset + 30 + name_bytes + extra_bytes, info.file_size)
    return content, places


def _small(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """An entry that is no tensor; a compressed one could be a thousand times as large as the file."""
    _refuse_compressed(info)
    if info.file_size > MAX_PICKLE_BYTES:
        raise Refused(f"its '{info.filename}' is larger than that of any checkpoint.")
    return archive.read(info)


def _refuse_compressed(info: zipfile.ZipInfo) -> None:
    if info.compress_type != zipfile.ZIP_STORED:
        raise Refused(f"'{info.filename}' is compressed; save it again with torch.save.")


def _read_legacy(path: Path) -> tuple[Any, Places]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(2)
        if start[:1] != b"\x80":
            raise Refused("it is neither a torch file nor safetensors.")
        file.seek(0)
        if TensorUnpickler(file).load() != _LEGACY_MAGIC:
            raise Refused("it is a pickle, but not one of torch.save.")
        TensorUnpickler(file).load(), TensorUnpickler(file).load()  # protocol version, system
        found: dict[str, Storage] = {}
        unpickler = TensorUnpickler(file, encoding="utf-8")
        content = unpickler.load()
        _collect(content, found)
        return content, _legacy_places(file, size, TensorUnpickler(file).load(), found)


def _legacy_places(file: BinaryIO, size: int, keys: Any, found: Mapping[str, Storage]) -> Places:
    places = {}
    for key in keys:
        storage = found.get(str(key))
        if storage is None:
            raise Refused(f"its storage '{key}' belongs to no tensor, so its size is not known.")
        (count,) = struct.unpack("<q", file.read(8).ljust(8, b"\xff"))  # too short: a negative number
        nbytes = count * DTYPES[storage.dtype][0]
        if count < 0 or file.tell() + nbytes > size:
            raise Refused(f"it ends within storage '{key}'.")
        places[str(key)] = (file.tell(), nbytes)
        file.seek(nbytes, io.SEEK_CUR)
    return places


def _collect(content: Any, found: dict[str, Storage]) -> None:
    if isinstance(content, StoredTensor):
        found.setdefault(content.storage.key, content.storage)
    elif isinstance(content, dict):
        for value in content.values():
            _collect(value, found)
    elif isinstance(content, list | tuple):
        for value in content:
            _collect(value, found)


def _weight_file(path: Path, form: str, content: Any, places: Places) -> WeightFile:
    if not isinstance(content, dict):
        raise ArtifactError(f"'{path}' holds a {type(content).__name__}, but a checkpoint is a dict of tensors or of groups.")
    size = path.stat().st_size
    entries: dict[str, Entry] = {}
    extra: dict[str, Any] = {}
    optimizer: dict[str, int] | None = None

    def add(name: str, value: Any) -> None:
        if name in entries or name in extra:
            raise Refused(f"it holds '{name}' twice.")
        if isinstance(value, StoredTensor):
            entries[name] = _entry(path, size, name, value, places)
        elif isinstance(value, dict) and value and _tensors(value):
            for key, item in value.items():
                add(f"{name}.{key}", item)
        else:
            extra[name] = plain(value)

    for top, value in content.items():
        if str(top).startswith("optimizer"):
            tensors = _tensors(value)
            seen = optimizer or {"tensors": 0, "bytes": 0}
            optimizer = {
                "tensors": seen["tensors"] + len(tensors),
                "bytes": seen["bytes"] + sum(_nbytes(tensor) for tensor in tensors),
            }
        else:
            add(str(top), value)
    return WeightFile(path, form, entries, tuple(map(str, content)), extra, optimizer)


def _entry(path: Path, size: int, name: str, tensor: StoredTensor, places: Places) -> Entry:
    if tensor.storage.key not in places:
        raise Refused(f"the storage of '{name}' is missing.")
    first, available = places[tensor.storage.key]
    itemsize = DTYPES[tensor.dtype][0]
    stride = None if not _strided(tensor) else tensor.stride
    begin = tensor.storage.first + tensor.offset * itemsize
    entry = Entry(path, first + begin, tensor.dtype, tensor.shape, stride)
    if begin + entry.span * itemsize > available or first + available > size:
        raise Refused(f"'{name}' has {available - begin} bytes where its shape asks for {entry.span * itemsize}.")
    if entry.numel > entry.span:
        raise Refused(f"'{name}' repeats {entry.span} values as {entry.numel}; save it again after .contiguous().")
    return entry


def _strided(tensor: StoredTensor) -> bool:
    return any(
        size > 1 and step != usual for size, step, usual in zip(tensor.shape, tensor.stride, row_major(tensor.shape), strict=True)
    )


def _tensors(value: Any) -> list[StoredTensor]:
    if isinstance(value, StoredTensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, list | tuple) else []


def _nbytes(tensor: StoredTensor) -> int:
    count = 1
    for side in tensor.shape:
        count *= side
    return count * DTYPES[tensor.dtype][0]

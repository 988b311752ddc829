"""Headers of torch.save files, the zip form (.pt, .pth since torch 1.6) and the legacy form, without torch and without code.

The pickle inside names storages; a restricted unpickler builds plain containers and remembers where each tensor's bytes
are.  It knows a dozen names (tensors, storages, OrderedDict) as inert stand-ins; any other name is refused before
anything of it runs.  Source: torch/serialization.py and torch/_utils.py, read for the layout.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edgewam.core.errors import ArtifactError
from edgewam.models.checkpoints.entries import DTYPES, Entry, WeightFile, row_major, unreadable

MAX_PICKLE_BYTES = 256 << 20  # that of a 7 billion parameter model with optimiser state is below 5 MB
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "UntypedStorage": "uint8",
}  # fmt: skip


class _Refused(Exception):
    """The pickle asks for something that is no plain tensor."""


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    nbytes: int
    first: int = 0  # bytes into the storage, of a legacy view


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    dtype: str
    offset: int  # values
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Dict(dict[Any, Any]):
    """Stands for an OrderedDict, whose pickled form may carry attributes; they are dropped."""

    def __setstate__(self, state: Any) -> None:
        """Ignore `_metadata`."""


class _Call:
    """An inert stand-in for a named function: may be called by the pickle, and holds nothing that it could change."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _Refused("it tries to change a function.")

    def __setstate__(self, state: Any) -> None:
        raise _Refused("it tries to change a function.")


@dataclass(frozen=True)
class _StorageKind:
    dtype: str

    def __setstate__(self, state: Any) -> None:
        raise _Refused("it tries to change a type.")


def _tensor(storage: _Storage, offset: int, shape: Any, stride: Any, *rest: Any) -> _Tensor:
    # rest: requires_grad, hooks, and from _rebuild_tensor_v3 the dtype, where the storage is untyped
    named = next((value[6:] for value in rest if isinstance(value, str) and value.startswith("torch.")), storage.dtype)
    if not isinstance(storage, _Storage) or named not in DTYPES:
        raise _Refused(f"a tensor has the dtype {named!r}, which is not known.")
    return _Tensor(storage, named, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


def _ordered(*items: Any) -> _Dict:
    return _Dict(*items)


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Call(_ordered),
    ("torch._utils", "_rebuild_tensor"): _Call(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Call(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Call(lambda data, *rest: data),
    ("torch", "Size"): _Call(lambda sizes=(): tuple(sizes)),
    ("torch", "device"): _Call(lambda *names: ":".join(map(str, names))),
    **{("torch", name): f"torch.{name}" for name in DTYPES},
    **{(module, name): _StorageKind(dtype) for name, dtype in _STORAGES.items() for module in ("torch", "torch.storage")},
}


class _Unpickler(pickle.Unpickler):
    """Reads containers, numbers, strings and tensors; tensors stay where they are."""

    def find_class(self, module: str, name: str) -> Any:
        """Only what is known, as a stand-in."""
        if (module, name) not in _KNOWN:
            raise _Refused(f"it asks to run '{module}.{name}', which is no tensor; nothing of it ran.")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: ('storage', type, key, location, number of values[, view])."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _StorageKind):
            raise _Refused("it refers to something that is no storage.")
        dtype, view = pid[1].dtype, pid[5] if len(pid) > 5 else None
        itemsize = DTYPES[dtype][0]
        first, count = (int(view[1]), int(view[2])) if view else (0, int(pid[4]))
        return _Storage(str(pid[2]), dtype, count * itemsize, first * itemsize)


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
    except _Refused as error:
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
            raise _Refused("it is a zip archive without data.pkl.")
        if f"{root}byteorder" in infos and archive.read(f"{root}byteorder") != b"little":
            raise _Refused("its values are big-endian.")
        if infos[f"{root}data.pkl"].file_size > MAX_PICKLE_BYTES:
            raise _Refused("its pickle is larger than that of any checkpoint.")
        content = _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), encoding="utf-8").load()
        places = {}
        for name, info in infos.items():
            if not name.startswith(f"{root}data/"):
                continue
            if info.compress_type != zipfile.ZIP_STORED:
                raise _Refused(f"'{name}' is compressed; save it again with torch.save.")
            file.seek(info.header_offset + 26)  # of the local header: lengths of name and extra field
            name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
            places[name[len(root) + 5 :]] = (info.header_offset + 30 + name_bytes + extra_bytes, info.file_size)
    return content, places


def _read_legacy(path: Path) -> tuple[Any, Places]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(2)
        if start[:1] != b"\x80":
            raise _Refused("it is neither a torch file nor safetensors.")
        file.seek(0)
        if _Unpickler(file).load() != _LEGACY_MAGIC:
            raise _Refused("it is a pickle, but not one of torch.save.")
        _Unpickler(file).load(), _Unpickler(file).load()  # protocol version, system
        found: dict[str, _Storage] = {}
        unpickler = _Unpickler(file, encoding="utf-8")
        content = unpickler.load()
        _collect(content, found)
        return content, _legacy_places(file, size, _Unpickler(file).load(), found)


def _legacy_places(file: BinaryIO, size: int, keys: Any, found: Mapping[str, _Storage]) -> Places:
    places = {}
    for key in keys:
        storage = found.get(str(key))
        if storage is None:
            raise _Refused(f"its storage '{key}' belongs to no tensor, so its size is not known.")
        (count,) = struct.unpack("<q", file.read(8))
        nbytes = count * DTYPES[storage.dtype][0]
        if count < 0 or file.tell() + nbytes > size:
            raise _Refused(f"it ends within storage '{key}'.")
        places[str(key)] = (file.tell(), nbytes)
        file.seek(nbytes, io.SEEK_CUR)
    return places


def _collect(content: Any, found: dict[str, _Storage]) -> None:
    if isinstance(content, _Tensor):
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
        if isinstance(value, _Tensor):
            entries[name] = _entry(path, size, name, value, places)
        elif isinstance(value, dict) and value and _tensors(value):
            for key, item in value.items():
                add(f"{name}.{key}", item)
        else:
            extra[name] = _plain(value)

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


def _entry(path: Path, size: int, name: str, tensor: _Tensor, places: Places) -> Entry:
    if tensor.storage.key not in places:
        raise _Refused(f"the storage of '{name}' is missing.")
    first, available = places[tensor.storage.key]
    itemsize = DTYPES[tensor.dtype][0]
    if len(tensor.shape) != len(tensor.stride) or min((tensor.offset, *tensor.shape, *tensor.stride)) < 0:
        raise _Refused(f"'{name}' has an impossible shape.")
    stride = None if not _strided(tensor) else tensor.stride
    begin = tensor.storage.first + tensor.offset * itemsize
    entry = Entry(path, first + begin, tensor.dtype, tensor.shape, stride)
    if begin + entry.span * itemsize > available or first + available > size:
        raise _Refused(f"'{name}' has {available - begin} bytes where its shape asks for {entry.span * itemsize}.")
    return entry


def _strided(tensor: _Tensor) -> bool:
    return any(
        size > 1 and step != usual for size, step, usual in zip(tensor.shape, tensor.stride, row_major(tensor.shape), strict=True)
    )


def _tensors(value: Any) -> list[_Tensor]:
    if isinstance(value, _Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, list | tuple) else []


def _nbytes(tensor: _Tensor) -> int:
    count = 1
    for side in tensor.shape:
        count *= side
    return count * DTYPES[tensor.dtype][0]


def _plain(value: Any) -> Any:
    """The value without stand-ins, as people may read it."""
    if isinstance(value, _Tensor):
        return f"tensor {value.dtype}{list(value.shape)}"
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, _Call | _StorageKind | _Storage):
        return re.sub(r"[<>]", "", repr(value))
    return value

"""A restricted unpickler for torch files: plain containers, numbers and strings, and tensors that stay where they are.

It knows a dozen names (tensors, storages, OrderedDict) as inert stand-ins that the pickle can neither look into nor
change; any other name is refused before anything of it runs.  Source: torch/_utils.py, read for the arguments.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgewam.models.checkpoints.entries import DTYPES

_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "UntypedStorage": "uint8",
}  # fmt: skip


class Refused(Exception):
    """The pickle asks for something that is no plain tensor."""


@dataclass(frozen=True)
class Storage:
    """Bytes by key; `nbytes` of them belong to its tensors."""

    key: str
    dtype: str
    nbytes: int
    first: int = 0  # bytes into the storage, of a legacy view


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage; offset and stride are in values."""

    storage: Storage
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
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused("it tries to change a function.")

    def __setstate__(self, state: Any) -> None:
        raise Refused("it tries to change a function.")


@dataclass(frozen=True)
class _StorageKind:
    dtype: str

    def __setstate__(self, state: Any) -> None:
        raise Refused("it tries to change a type.")


def _tensor(storage: Storage, offset: int, shape: Any, stride: Any, *rest: Any) -> StoredTensor:
    # rest: requires_grad, hooks, and from _rebuild_tensor_v3 the dtype, where the storage is untyped
    named = next((value[6:] for value in rest if isinstance(value, str) and value.startswith("torch.")), storage.dtype)
    if not isinstance(storage, Storage) or named not in DTYPES:
        raise Refused(f"a tensor has the dtype {named!r}, which is not known.")
    return StoredTensor(storage, named, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


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


class TensorUnpickler(pickle._Unpickler):
    """Reads containers, numbers, strings and tensors; tensors stay where they are.

    The one written in Python: that in C takes memory for any number that a broken file gives as an index.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Only what is known, as a stand-in."""
        if (module, name) not in _KNOWN:
            raise Refused(f"it asks to run '{module}.{name}', which is no tensor; nothing of it ran.")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        """A storage: ('storage', type, key, location, number of values[, view])."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _StorageKind):
            raise Refused("it refers to something that is no storage.")
        dtype, view = pid[1].dtype, pid[5] if len(pid) > 5 else None
        itemsize = DTYPES[dtype][0]
        first, count = (int(view[1]), int(view[2])) if view else (0, int(pid[4]))
        return Storage(str(pid[2]), dtype, count * itemsize, first * itemsize)


def plain(value: Any) -> Any:
    """The value without stand-ins, as people may read it."""
    if isinstance(value, StoredTensor):
        return f"tensor {value.dtype}{list(value.shape)}"
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    if isinstance(value, _Call | _StorageKind | Storage):
        return type(value).__name__.strip("_")
    return value

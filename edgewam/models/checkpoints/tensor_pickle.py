"""A restricted unpickler for torch files: plain containers, numbers and strings, and tensors that stay where they are.

It knows a dozen names (tensors, storages, OrderedDict) as inert stand-ins that the pickle can neither look into nor
change; any other name is refused before anything of it runs.  `bounded_pickle` limits what it may take.  Source:
torch/_utils.py, read for the arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgewam.models.checkpoints.bounded_pickle import BoundedUnpickler, Refused, checked_key
from edgewam.models.checkpoints.entries import DTYPES, MAX_COUNT

_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "UntypedStorage": "uint8",
}  # fmt: skip


MAX_SIDES = 64  # dimensions of a tensor, as torch has them


@dataclass(frozen=True)
class Storage:
    """Bytes by key; `nbytes` of them belong to its tensors."""

    key: str
    dtype: str
    nbytes: int
    first: int = 0  # bytes into the storage, of a legacy view

    def __setstate__(self, state: Any) -> None:
        raise Refused("it tries to change a storage.")


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage; offset and stride are in values."""

    storage: Storage
    dtype: str
    offset: int  # values
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __setstate__(self, state: Any) -> None:
        raise Refused("it tries to change a tensor.")


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
    if len(shape) > MAX_SIDES or len(shape) != len(stride):
        raise Refused(f"a tensor has {len(shape)} sides and {len(stride)} strides.")
    return StoredTensor(storage, named, _count(offset), tuple(map(_count, shape)), tuple(map(_count, stride)))


def _count(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < MAX_COUNT:
        raise Refused("a tensor has an impossible shape or place.")
    return value


def _ordered(items: Any = ()) -> _Dict:
    return _Dict((checked_key(key), value) for key, value in items)


def _device(*names: Any) -> str:
    return ":".join(str(checked_key(name)) for name in names)


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Call(_ordered),
    ("torch._utils", "_rebuild_tensor"): _Call(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Call(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Call(lambda data, *rest: data),
    ("torch", "Size"): _Call(lambda sizes=(): tuple(sizes)),
    ("torch", "device"): _Call(_device),
    **{("torch", name): f"torch.{name}" for name in DTYPES},
    **{(module, name): _StorageKind(dtype) for name, dtype in _STORAGES.items() for module in ("torch", "torch.storage")},
}


class TensorUnpickler(BoundedUnpickler):
    """Reads containers, numbers, strings and tensors; tensors stay where they are."""

    def find_class(self, module: str, name: str) -> Any:
        """Only what is known, as a stand-in."""
        if (module, name) not in _KNOWN:
            raise Refused(
                f"it asks to run '{module}.{name}', which is no tensor; nothing of it ran. If you trust its maker, save its "
                "tensors alone where it was made."
            )
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        """A storage: ('storage', type, key, location, number of values[, view])."""
        if (
            not isinstance(pid, tuple)
            or len(pid) < 5
            or pid[0] != "storage"
            or not isinstance(pid[1], _StorageKind)
            or not isinstance(pid[2], str | int)
        ):
            raise Refused("it refers to something that is no storage.")
        dtype, view = pid[1].dtype, pid[5] if len(pid) > 5 else None
        itemsize = DTYPES[dtype][0]
        first, count = (_count(view[1]), _count(view[2])) if view else (0, _count(pid[4]))
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

"""NumPy arrays inside a pickled message: the few constructors a client may name, each one ours and checked before it allocates.

The names are those that NumPy 1 and 2 write (`numpy.core...`, `numpy._core...`); none of them is ever imported or called.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.robot_bridge.serving.handler import DoorError

DTYPES = ("u1", "i4", "i8", "f4", "f8")  # what observations are made of; objects and strings are not
MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class Name:
    """A global that a message mentions: words, nothing that could be called."""

    module: str
    name: str


@dataclass
class DtypeClaim:
    """A dtype of the list above; the message's own word about byte order may still follow."""

    dtype: np.dtype[Any]


@dataclass
class ArrayClaim:
    """An array under construction in the older form: empty first, shape and bytes later.  array: None until they came."""

    array: npt.NDArray[Any] | None = None


NDARRAY = Name("numpy", "ndarray")
_DTYPE = Name("numpy", "dtype")
_FROM_BUFFER = {Name(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}
_RECONSTRUCT = {Name(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
_SCALAR = {Name(f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")}
ALLOWED = {NDARRAY, _DTYPE} | _FROM_BUFFER | _RECONSTRUCT | _SCALAR


def construct(name: Any, arguments: Any) -> Any:
    """What calling an allowed name with a tuple of arguments means; DoorError `bad_request` for everything else."""
    match arguments if isinstance(name, Name) else None:
        case (str(spec), _, _) if name == _DTYPE and spec in DTYPES:
            return DtypeClaim(np.dtype("<" + spec))
        case (bytes() | bytearray() as data, DtypeClaim() as claim, tuple(shape), str(order)) if name in _FROM_BUFFER:
            return _array(data, claim, shape, order)
        case (Name() as kind, (0,), b"b") if name in _RECONSTRUCT and kind == NDARRAY:
            return ArrayClaim()
        case (DtypeClaim() as claim, bytes(data)) if name in _SCALAR:
            return _array(data, claim, (), "C").item()
    raise DoorError("bad_request", "This message builds something that is no NumPy array of numbers. It was not built.")


def set_state(target: Any, state: Any) -> None:
    """Complete a dtype (version, byte order, ...) or an array (version, shape, dtype, is_fortran, bytes)."""
    match target, state:
        case DtypeClaim(), (int(), "<" | "|" | "=", None, None, None, -1, -1, 0):
            return
        case ArrayClaim(array=None), (1, tuple(shape), DtypeClaim() as claim, bool(is_fortran), bytes(data)):
            target.array = _array(data, claim, shape, "F" if is_fortran else "C")
            return
    raise DoorError("bad_request", "This message sets a state that no NumPy array of numbers has. Send little-endian arrays.")


def _array(data: bytes | bytearray, claim: DtypeClaim, shape: tuple[Any, ...], order: str) -> npt.NDArray[Any]:
    """A view of `data`; the claimed shape must account for every byte of it."""
    if len(shape) > MAX_DIMENSIONS or not all(type(size) is int and 0 <= size <= len(data) for size in shape):
        raise DoorError("bad_request", f"An array must have at most {MAX_DIMENSIONS} dimensions, none longer than its data.")
    if math.prod(shape) * claim.dtype.itemsize != len(data):
        raise DoorError("bad_request", f"An array claims shape {list(shape)} of {claim.dtype} but comes with {len(data)} bytes.")
    if order not in ("C", "F"):
        raise DoorError("bad_request", "The elements of an array must be in the order C or F.")
    return np.frombuffer(data, claim.dtype).reshape(shape, order="F" if order == "F" else "C")

"""Writes replies as pickles that any client can load: protocol 3 (Python 3.0 on) and the array names NumPy 1 and 2 share.

The standard pickler would write `numpy._core...` here, which a robot computer with NumPy 1.25 or older cannot load.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

_START, _STOP = b"\x80\x03", b"."  # PROTO 3, STOP
_RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"  # an empty array ...
_DTYPE = b"cnumpy\ndtype\n"


def write(message: Mapping[str, Any]) -> bytes:
    """A message of strings, numbers, booleans, None and arrays of the dtypes u1, f4 and f8."""
    parts = [_START, b"}("]
    for key, value in message.items():
        parts += [_value(key), _value(value)]
    return b"".join([*parts, b"u", _STOP])


def _value(value: Any) -> bytes:
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            data = value.to_bytes(8, "little", signed=True)
            return b"\x8a\x08" + data
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            text = value.encode()
            return b"X" + struct.pack("<I", len(text)) + text
        case np.ndarray():
            return _array(value)
    raise TypeError(f"A reply cannot hold {type(value).__name__}.")  # a mistake of ours: replies are made here


def _array(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype.str not in ("|u1", "<f4", "<f8"):
        raise TypeError(f"A reply cannot hold arrays of {array.dtype}.")
    order, kind = array.dtype.str[0], array.dtype.str[1:]
    dtype = _DTYPE + _value(kind) + b"\x89\x88\x87R"  # dtype(kind, False, True)
    dtype += b"(" + b"".join(_value(item) for item in (3, order, None, None, None, -1, -1, 0)) + b"tb"  # its byte order
    shape = b"(" + b"".join(_value(size) for size in array.shape) + b"t"
    data = array.tobytes()
    return _RECONSTRUCT + b"(K\x01" + shape + dtype + b"\x89B" + struct.pack("<I", len(data)) + data + b"tb"  # ... and its state

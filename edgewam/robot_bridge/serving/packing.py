"""msgpack with NumPy arrays as openpi writes them, decoded without trust: no object dtypes, no lies about lengths, few objects.

An array is a map with the byte-string keys `__ndarray__` (true), `data`, `dtype` (dtype.str) and `shape`; a NumPy scalar has
`__npgeneric__`, `data` and `dtype` (facts/robot.md section 3).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgewam.core.errors import require
from edgewam.robot_bridge.serving import checks
from edgewam.robot_bridge.serving.handler import DoorError

MAX_CONTAINERS = 64  # maps and lists in one message: 8 MB of empty lists would become 450 MB of objects
_EXTRA = "serve"


def pack(value: Any) -> bytes:
    """A message as bytes; arrays must be of a dtype in `checks.DTYPES`."""
    packed: bytes = require("msgpack", extra=_EXTRA).packb(value, default=_packed_array)
    return packed


def unpack(data: bytes, max_items: int = checks.MAX_ITEMS) -> Any:
    """A message from bytes, arrays as views of them; max_items: of any map or list in it.

    Raises:
        DoorError: `bad_request`, whatever is wrong with it.
    """
    hooks = _Hooks()
    try:
        message = require("msgpack", extra=_EXTRA).unpackb(
            data, object_hook=hooks.on_map, list_hook=hooks.on_list, ext_hook=_refuse_extension, strict_map_key=True,
            max_array_len=max_items, max_map_len=max_items,
        )  # fmt: skip
    except DoorError:
        raise
    except Exception as error:  # msgpack raises a dozen kinds, all of which mean: these bytes are no message
        raise DoorError("bad_request", f"This is no msgpack message ({type(error).__name__}).") from error
    checks.check_tree(message, max_items=max_items)
    return message


class _Hooks:
    """Counts containers as they are completed, and turns the maps that stand for arrays into arrays."""

    def __init__(self) -> None:
        self._count = 0

    def _counted(self) -> None:
        self._count += 1
        if self._count > MAX_CONTAINERS:
            raise DoorError("bad_request", f"More than {MAX_CONTAINERS} maps and lists in one message.")

    def on_list(self, value: list[Any]) -> list[Any]:
        self._counted()
        return value

    def on_map(self, value: dict[Any, Any]) -> Any:
        self._counted()
        if b"__ndarray__" in value:
            return checks.array_of(value.get(b"dtype"), value.get(b"shape"), value.get(b"data"))
        if b"__npgeneric__" in value:
            return _scalar(value.get(b"dtype"), value.get(b"data"))
        return value


def _scalar(dtype: Any, data: Any) -> int | float | bool:
    if not isinstance(dtype, str) or dtype not in checks.DTYPES or type(data) not in (int, float, bool):
        raise DoorError("bad_request", f"A scalar of dtype {checks.shown(dtype)} is not accepted.")
    number: int | float | bool = data
    return number


def _refuse_extension(code: int, data: bytes) -> Any:
    raise DoorError("bad_request", "msgpack extension types are not accepted.")


def _packed_array(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.str in checks.DTYPES:
        data = value.data if value.flags.c_contiguous and value.size else value.tobytes()
        return {b"__ndarray__": True, b"data": data, b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic) and value.dtype.str in checks.DTYPES:
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    kind = value.dtype if isinstance(value, np.ndarray | np.generic) else type(value).__name__
    raise TypeError(f"Cannot send {kind}; arrays must be of dtype {', '.join(checks.DTYPES)}.")

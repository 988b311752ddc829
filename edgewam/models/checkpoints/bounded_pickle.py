"""A pickle machine with limits: only the instructions that files of tensors need, bounded bytes, numbers, names and nesting.

A pickle of some hundred bytes can describe a structure that takes hours to walk (lists of the same list, sixty levels
deep), a number of millions of digits, or memory that it does not fill.  Nothing of that passes here.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

MAX_PICKLE_BYTES = 16 << 20  # that of a 7 billion parameter model with optimiser state is below 5 MB
MAX_VALUES, MAX_DEPTH = 2_000_000, 64  # containers and what is in them, each counted as often as it is met
MAX_BITS = 128  # of a number: the marks that files begin with, seeds and counts are smaller
_PLAIN = (str, int, float, bool, type(None))
_INSTRUCTIONS = (
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2",
    "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINSTRING",
    "SHORT_BINSTRING", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT",
    "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET",
    "LONG_BINGET", "BINPERSID",
)  # fmt: skip


class Refused(Exception):
    """The pickle asks for something that is no plain tensor, or for too much of it."""


class _Instructions(dict[int, Callable[[Any], None]]):
    def __missing__(self, code: int) -> Callable[[Any], None]:
        raise Refused(f"its pickle has the instruction {code:#04x}, which no file of tensors needs.")


class BoundedUnpickler(pickle._Unpickler):
    """Containers, numbers and strings; subclasses say which names and storages there are.

    The one written in Python: that in C takes memory for any number that a broken file gives as an index.
    """

    dispatch = _Instructions({getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
                              for name in _INSTRUCTIONS})  # fmt: skip

    def __init__(self, file: BinaryIO, **options: Any) -> None:
        super().__init__(_Bounded(file), **options)

    def load(self) -> Any:
        """The value, when it is within all limits.

        Raises:
            Refused: it is not.
        """
        value = super().load()
        _measure(value)
        return value

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._put(items[::2], items[1::2])

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key], [value])

    def _put(self, keys: list[Any], values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise Refused("it puts names into something that is no dict.")
        for key, value in zip(keys, values, strict=True):
            target[checked_key(key)] = value

    dispatch[pickle.SETITEMS[0]] = _set_items
    dispatch[pickle.SETITEM[0]] = _set_item


def checked_key(key: Any) -> Any:
    """A name of an entry, which is hashed: plain, or a tuple of plain values."""
    if (isinstance(key, tuple) and all(isinstance(part, _PLAIN) for part in key)) or isinstance(key, _PLAIN):
        return key
    raise Refused(f"an entry is named by a {type(key).__name__}.")


def _measure(value: Any) -> None:
    """Refuse what takes too long to walk or to print; what is shared is counted wherever it is met, as a reader meets it."""
    level, left = [value], MAX_VALUES
    for _ in range(MAX_DEPTH):
        left -= len(level)
        below: list[Any] = []
        for item in level:
            if isinstance(item, int) and item.bit_length() > MAX_BITS:
                raise Refused(f"it holds a number of {item.bit_length()} bits.")
            if isinstance(item, Mapping):
                below.extend(item.values())
            elif isinstance(item, list | tuple):
                below.extend(item)
            if len(below) > left:
                raise Refused(f"it describes more than {MAX_VALUES} values; a checkpoint has some thousand.")
        level = below
        if not level:
            return
    raise Refused(f"its values lie more than {MAX_DEPTH} levels deep.")


class _Bounded:
    """A file that gives at most MAX_PICKLE_BYTES to one pickle, and nothing that is not there."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, MAX_PICKLE_BYTES

    def read(self, size: int) -> bytes:
        """The next bytes."""
        return self._counted(self._file.read(min(size, self._left + 1)))

    def readline(self) -> bytes:
        """The next bytes up to the end of the line."""
        return self._counted(self._file.readline(self._left + 1))

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise Refused("its pickle is larger than that of any checkpoint.")
        return data

"""Reads pickled messages of upstream's clients as plain data, without ever unpickling: a stack machine that knows few opcodes.

A message is a tree of dicts, lists, tuples, strings, numbers and NumPy arrays.  Nothing in it is imported or called; the names
it may mention are listed in `arrays.py`, the opcodes in `opcodes.py`, and there is no fallback.
"""

from __future__ import annotations

from typing import Any

from edgewam.robot_bridge.doors.aha_wam_wire import arrays
from edgewam.robot_bridge.doors.aha_wam_wire.arrays import ArrayClaim, DtypeClaim, Name
from edgewam.robot_bridge.doors.aha_wam_wire.opcodes import operations
from edgewam.robot_bridge.serving.handler import DoorError

MAX_OPCODES = 2048  # three cameras, four vectors and the usual keys take about 170
MAX_DEPTH = 8  # an array in `images` in the message, with the tuples it is built from, is 5 deep

_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CONTAINERS = (dict, list, tuple)
_IGNORED = {"PROTO", "FRAME"}


def read(frame: bytes) -> Any:
    """The message in a frame whose size was capped when it was received.

    Raises:
        DoorError: `bad_request` when it is truncated, too deep, too long or anything but plain data and arrays; `too_large`.
    """
    machine = _Machine()
    for number, (name, argument) in enumerate(operations(frame)):
        if number >= MAX_OPCODES:
            raise DoorError("bad_request", f"A message may have at most {MAX_OPCODES} opcodes.")
        if name == "STOP":
            break
        machine.do(name, argument)
    return machine.result()


class _Machine:
    """The stack of a message being read: pairs of a value and how deep it is, with the places of open marks beside it."""

    def __init__(self) -> None:
        self._stack: list[tuple[Any, int]] = []
        self._marks: list[int] = []
        self._memo: dict[int, tuple[Any, int]] = {}

    def do(self, name: str, argument: Any) -> None:
        """Apply one opcode."""
        if name in _IGNORED:
            return
        if name in _VALUES:
            self._push(_VALUES[name])
        elif name in _LITERALS:
            self._push(argument)
        elif name in _EMPTY:
            self._push(_EMPTY[name](), 1)
        elif name in _TUPLES:
            self._push_tuple(self._pop(_TUPLES[name]))
        elif name == "MARK":
            self._marks.append(len(self._stack))
        elif name == "TUPLE":
            self._push_tuple(self._pop_to_mark())
        elif name in ("APPEND", "APPENDS"):
            self._append(self._pop(1) if name == "APPEND" else self._pop_to_mark())
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items(self._pop(2) if name == "SETITEM" else self._pop_to_mark())
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            self._memo[len(self._memo) if argument is None else argument] = self._top()
        elif name in ("BINGET", "LONG_BINGET"):
            self._push_again(argument)
        elif name == "GLOBAL":
            self._push_name(*argument)
        elif name == "STACK_GLOBAL":
            (module, _), (attribute, _) = self._pop(2)
            self._push_name(module, attribute)
        elif name == "REDUCE":
            (function, _), (arguments, depth) = self._pop(2)
            self._push(arrays.construct(function, arguments), depth)
        elif name == "BUILD":
            ((state, _),) = self._pop(1)
            arrays.set_state(self._top()[0], state)

    def result(self) -> Any:
        """The one value that is left."""
        if len(self._stack) != 1 or self._marks:
            raise DoorError("bad_request", "This message leaves something unfinished.")
        return _finished(self._stack[0][0])

    def _push(self, value: Any, depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise DoorError("bad_request", f"A message may be at most {MAX_DEPTH} levels deep.")
        self._stack.append((value, depth))

    def _top(self) -> tuple[Any, int]:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise DoorError("bad_request", "This message uses a value that it has not made.")
        return self._stack[-1]

    def _pop(self, count: int) -> list[tuple[Any, int]]:
        if len(self._stack) - count < (self._marks[-1] if self._marks else 0):
            raise DoorError("bad_request", "This message uses a value that it has not made.")
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken

    def _pop_to_mark(self) -> list[tuple[Any, int]]:
        if not self._marks:
            raise DoorError("bad_request", "This message ends something that it has not begun.")
        mark = self._marks.pop()
        taken = self._stack[mark:]
        del self._stack[mark:]
        return taken

    def _push_tuple(self, items: list[tuple[Any, int]]) -> None:
        self._push(tuple(value for value, _ in items), 1 + max((depth for _, depth in items), default=0))

    def _append(self, items: list[tuple[Any, int]]) -> None:
        self._grow(list, items).extend(_finished(value) for value, _ in items)

    def _set_items(self, items: list[tuple[Any, int]]) -> None:
        keys, values = items[::2], items[1::2]
        if len(keys) != len(values) or not all(type(key) is str for key, _ in keys):
            raise DoorError("bad_request", "The keys of a message must be strings.")
        target = self._grow(dict, values)
        for (key, _), (value, _) in zip(keys, values, strict=True):
            target[key] = _finished(value)

    def _grow(self, kind: type, items: list[tuple[Any, int]]) -> Any:
        """The container on top of the stack, its depth renewed for what is about to go in."""
        ((target, depth),) = self._pop(1)
        if type(target) is not kind:
            raise DoorError("bad_request", f"This message adds items to something that is no {kind.__name__}.")
        self._push(target, max([depth, *(1 + below for _, below in items)]))
        return target

    def _push_again(self, key: int) -> None:
        if key not in self._memo:
            raise DoorError("bad_request", "This message uses a value that it has not made.")
        value, depth = self._memo[key]
        if isinstance(value, _CONTAINERS):  # a tree stays a tree: shared or circular containers are how small pickles grow
            raise DoorError("bad_request", "A message may not contain the same container twice. Send a copy.")
        self._push(value, depth)

    def _push_name(self, module: Any, attribute: Any) -> None:
        # other values are not even looked at: as text, a tuple that holds the same megabytes a thousand times is gigabytes
        name = Name(module, attribute) if type(module) is str and type(attribute) is str else None
        if name not in arrays.ALLOWED:
            raise DoorError("bad_request", "This message names something that is no part of a NumPy array. It was not loaded.")
        self._push(name)


def _finished(value: Any) -> Any:
    """A value as the message's reader sees it; names and half-built arrays may not get there."""
    if isinstance(value, ArrayClaim):
        value = value.array
        if value is None:
            raise DoorError("bad_request", "An array in this message has no data.")
    if isinstance(value, Name | DtypeClaim):
        raise DoorError("bad_request", "A message may hold arrays, not dtypes or classes.")
    return value

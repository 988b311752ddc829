"""Splits a pickle into opcodes and arguments: only those that plain data and arrays need, every length checked before its use.

The standard `pickletools.genops` is no help here: it first decodes the argument of an opcode that we then refuse.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from edgewam.robot_bridge.serving.handler import DoorError

MAX_STRING_BYTES = 4096  # an instruction is the longest
MAX_NAME_BYTES = 64
_BARE = {
    b"N": "NONE", b"\x88": "NEWTRUE", b"\x89": "NEWFALSE", b"}": "EMPTY_DICT", b"]": "EMPTY_LIST", b")": "EMPTY_TUPLE",
    b"(": "MARK", b"\x85": "TUPLE1", b"\x86": "TUPLE2", b"\x87": "TUPLE3", b"t": "TUPLE", b"a": "APPEND", b"e": "APPENDS",
    b"s": "SETITEM", b"u": "SETITEMS", b"\x94": "MEMOIZE", b"\x93": "STACK_GLOBAL", b"R": "REDUCE", b"b": "BUILD", b".": "STOP",
}  # fmt: skip
_NUMBER = {
    b"\x80": ("PROTO", "<B"), b"\x95": ("FRAME", "<Q"), b"J": ("BININT", "<i"), b"K": ("BININT1", "<B"), b"M": ("BININT2", "<H"),
    b"G": ("BINFLOAT", ">d"), b"q": ("BINPUT", "<B"), b"r": ("LONG_BINPUT", "<I"), b"h": ("BINGET", "<B"),
    b"j": ("LONG_BINGET", "<I"),
}  # fmt: skip
_COUNTED = {
    b"\x8c": ("SHORT_BINUNICODE", "<B"), b"X": ("BINUNICODE", "<I"), b"C": ("SHORT_BINBYTES", "<B"), b"B": ("BINBYTES", "<I"),
    b"\x8e": ("BINBYTES8", "<Q"), b"\x96": ("BYTEARRAY8", "<Q"), b"\x8a": ("LONG1", "<B"),
}  # fmt: skip
_STRINGS = ("SHORT_BINUNICODE", "BINUNICODE")
_GLOBAL = b"c"
_INTEGER_BYTES = 8


def operations(frame: bytes) -> Iterator[tuple[str, Any]]:
    """Opcode names and decoded arguments up to and with STOP, which must be the last byte of the frame.

    Raises:
        DoorError: `bad_request` for an opcode that is not listed or an argument that is not there, `too_large` for a long string.
    """
    reader = _Reader(frame)
    while True:
        code = reader.take(1)
        if code in _BARE:
            name = _BARE[code]
            if name == "STOP" and reader.left:
                raise DoorError("bad_request", "There are bytes behind the end of this message.")
            yield name, None
            if name == "STOP":
                return
        elif code in _NUMBER:
            name, form = _NUMBER[code]
            yield name, reader.number(form)
        elif code in _COUNTED:
            name, form = _COUNTED[code]
            yield name, _decoded(name, reader, reader.number(form))
        elif code == _GLOBAL:
            yield "GLOBAL", (reader.line(), reader.line())
        else:
            raise DoorError("bad_request", f"Opcode {code!r} has no place in a message of numbers and names (protocol 3 to 5).")


def _decoded(name: str, reader: _Reader, length: int) -> Any:
    if name in _STRINGS:
        if length > MAX_STRING_BYTES:
            raise DoorError("too_large", f"A string may have at most {MAX_STRING_BYTES} bytes.")
        try:
            return reader.take(length).decode()
        except UnicodeDecodeError:
            raise DoorError("bad_request", "A string in this message is not UTF-8.") from None
    if name == "LONG1":
        if length > _INTEGER_BYTES:
            raise DoorError("bad_request", "An integer in this message does not fit 64 bits.")
        return int.from_bytes(reader.take(length), "little", signed=True)
    return reader.take(length)


class _Reader:
    """A position in a frame that never leaves it."""

    def __init__(self, frame: bytes) -> None:
        self._frame, self._at = frame, 0

    @property
    def left(self) -> int:
        return len(self._frame) - self._at

    def take(self, length: int) -> bytes:
        if length > self.left:
            raise DoorError("bad_request", "This frame is no complete message: it ends too early.")
        self._at += length
        return self._frame[self._at - length : self._at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self._frame.find(b"\n", self._at, self._at + MAX_NAME_BYTES)
        if end < 0:
            raise DoorError("bad_request", "A name in this message is too long.")
        line = self.take(end + 1 - self._at)[:-1]
        return line.decode("ascii", "replace")

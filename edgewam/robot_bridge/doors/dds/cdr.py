"""Reads the two image messages from their CDR bytes without touching the pixels one by one, as the general decoder does.

CDR is the wire format of DDS: fields in order, numbers aligned to their size, strings and sequences behind a 32-bit length.  The
general decoder makes a list of 921 600 integers of a 640x480 image, and while it does no control tick can run.
"""

from __future__ import annotations

import struct
from types import SimpleNamespace

from edgewam.robot_bridge.serving.handler import DoorError

_ORDERS = {b"\x00\x00": ">", b"\x00\x01": "<", b"\x00\x06": ">", b"\x00\x07": "<"}  # plain CDR, versions 1 and 2
_HEADER_BYTES = 4


def image(data: bytes) -> SimpleNamespace:
    """sensor_msgs/Image: height, width, encoding, step, data (a view of the bytes).

    Raises:
        DoorError: `bad_request` when the bytes are no such message.
    """
    cdr = _Cdr(data)
    cdr.skip_header()
    height, width, encoding = cdr.number("I"), cdr.number("I"), cdr.text()
    cdr.number("B")  # is_bigendian: the encodings that are accepted have one byte per value
    return SimpleNamespace(height=height, width=width, encoding=encoding, step=cdr.number("I"), data=cdr.octets())


def compressed_image(data: bytes) -> SimpleNamespace:
    """sensor_msgs/CompressedImage: format, data (a view of the bytes).  DoorError as for `image`."""
    cdr = _Cdr(data)
    cdr.skip_header()
    return SimpleNamespace(format=cdr.text(), data=cdr.octets())


class _Cdr:
    """A position in the bytes behind the four of the encapsulation header, from which alignment counts."""

    def __init__(self, data: bytes) -> None:
        order = _ORDERS.get(bytes(data[:2]))
        if order is None or len(data) < _HEADER_BYTES:
            raise DoorError("bad_request", "These bytes are no CDR message.")
        self._order, self._body, self._at = order, memoryview(data)[_HEADER_BYTES:], 0

    def skip_header(self) -> None:
        """std_msgs/Header: stamp and frame_id."""
        self.number("i"), self.number("I"), self.text()

    def number(self, form: str) -> int:
        size = struct.calcsize(form)
        self._at += -self._at % size
        return int(struct.unpack(self._order + form, self._take(size))[0])

    def text(self) -> str:
        return bytes(self.octets()).rstrip(b"\0").decode("utf-8", "replace")

    def octets(self) -> memoryview:
        return self._take(self.number("I"))

    def _take(self, size: int) -> memoryview:
        if size > len(self._body) - self._at:
            raise DoorError("bad_request", "This message ends too early.")
        self._at += size
        return self._body[self._at - size : self._at]

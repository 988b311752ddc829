"""One fixed-layout record in anonymous shared memory: one writer, many readers, latest value wins.

A sequence lock tells a reader that the writer is in the middle of a write; a CRC32 over the payload and its sequence number
tells it that the bytes belong together, which a sequence lock alone does not promise on ARM.  The memory is a memfd: it has no
name, so nothing can be left behind in /dev/shm whatever dies, and a child gets it by inheriting the descriptor.
"""

from __future__ import annotations

import mmap
import os
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

Layout = np.dtype[Any]
Value = npt.NDArray[Any]

_HEADER = np.dtype([("sequence", "<u8"), ("crc", "<u4"), ("reserved", "<u4")])
_ATTEMPTS = 3  # a write takes microseconds; a reader on a deadline must not wait for a writer that was preempted or killed


class SharedRecord:
    """A record of `layout` (a structured dtype).  Without `fd` a new zeroed memfd is made; with it that one is mapped."""

    def __init__(self, layout: Layout, fd: int | None = None) -> None:
        self.layout = layout
        size = _HEADER.itemsize + layout.itemsize
        if fd is None:
            fd = os.memfd_create("edgewam")
            os.ftruncate(fd, size)
        self.fd = fd
        self.torn = 0  # reads that found only half-written or damaged bytes
        self._map = mmap.mmap(fd, size)
        self._header: Value = np.frombuffer(self._map, _HEADER, 1)[0:1]
        self._payload: Value = np.frombuffer(self._map, np.uint8, layout.itemsize, _HEADER.itemsize)

    def blank(self) -> Value:
        """A zeroed value of this layout, shape [], to fill and `write`."""
        return np.zeros((), self.layout)

    def write(self, value: Value) -> None:
        """Publish a value [] of the layout.  Only one process may ever write a record at a time."""
        assert value.dtype == self.layout and value.shape == ()
        data = value.tobytes()
        # a predecessor killed in the middle left an odd number: the next odd one is as good
        writing = (int(self._header["sequence"][0]) + 1) | 1
        self._header["sequence"][0] = writing
        self._payload[:] = np.frombuffer(data, np.uint8)
        self._header["crc"][0] = zlib.crc32(data, (writing + 1) & 0xFFFFFFFF)
        self._header["sequence"][0] = writing + 1

    def read(self, newer_than: int = 0) -> tuple[int, Value] | None:
        """The newest whole value and its version, or None when there is none newer than that version (0: never written).

        A value that stays half-written or fails its CRC over a few attempts is counted in `torn` and not returned.
        """
        for _ in range(_ATTEMPTS):
            version = int(self._header["sequence"][0])
            if version <= newer_than:
                return None
            if version % 2:
                continue
            data = self._payload.tobytes()
            crc = int(self._header["crc"][0])
            same = int(self._header["sequence"][0]) == version
            if same and zlib.crc32(data, version & 0xFFFFFFFF) == crc:
                return version, np.frombuffer(data, self.layout)[0:1].reshape(())
        self.torn += 1
        return None

    def close(self) -> None:
        """Unmap and close the descriptor; safe to call twice."""
        if not self._map.closed:
            del self._header, self._payload
            self._map.close()
            os.close(self.fd)

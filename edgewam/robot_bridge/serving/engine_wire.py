"""What passes between a door's process and its engine process: messages over a socket pair, observations in shared memory.

A message is one JSON line, an answer's actions follow it as float32 bytes.  Sending a message is a system call, and a system call
is a memory barrier: whoever reads it also sees the observation that was written before.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.core.records import Observation

MAX_MESSAGE = 1 << 16  # the longest chunk of the bridge, 64 rows of 64 joints, is 16 kB
Blob = npt.NDArray[np.float32]


def encode(fields: Mapping[str, Any], actions: Blob | None = None) -> bytes:
    """A message, with actions [rows, D] or without."""
    if actions is None:
        return json.dumps(fields).encode() + b"\n"
    head = json.dumps({**fields, "shape": actions.shape}).encode()
    return head + b"\n" + np.ascontiguousarray(actions, np.float32).tobytes()


def decode(message: bytes) -> tuple[dict[str, Any], Blob | None]:
    """The fields of a message and its actions."""
    head, _, body = message.partition(b"\n")
    fields: dict[str, Any] = json.loads(head)
    shape = fields.pop("shape", None)
    return fields, None if shape is None else np.frombuffer(body, np.float32).reshape(shape)


class ObservationBuffer:
    """One observation in anonymous shared memory.  Without `fd` a new memfd is made; with it that one is mapped.

    It has no lock: the writer may only write while the reader owes no answer, or when that answer will be thrown away.
    """

    def __init__(self, num_joints: int, camera_shapes: Mapping[str, Iterable[int]], fd: int | None = None) -> None:
        fields: list[Any] = [("tick", "<i8"), ("t_capture_ns", "<i8"), ("state", "<f4", (num_joints,))]
        fields += [(f"camera {name}", "u1", tuple(shape)) for name, shape in camera_shapes.items()]
        layout = np.dtype(fields)
        if fd is None:
            fd = os.memfd_create("edgewam")
            os.ftruncate(fd, layout.itemsize)
        self.fd = fd
        self._map = mmap.mmap(fd, layout.itemsize)
        record = np.frombuffer(self._map, layout, 1)[0]
        self._numbers, self._state = record, record["state"]  # looking a field up costs more than copying a small one
        self._images: dict[str, npt.NDArray[np.uint8]] = {name: record[f"camera {name}"] for name in camera_shapes}

    def write(self, observation: Observation) -> None:
        """Copy an observation in; every camera must be there."""
        self._numbers["tick"], self._numbers["t_capture_ns"] = observation.tick, observation.t_capture_ns
        self._state[:] = observation.state
        for name, image in self._images.items():
            image[:] = observation.images[name]

    def read(self) -> Observation:
        """A copy of the observation."""
        images = {name: image.copy() for name, image in self._images.items()}
        return Observation(images, self._state.copy(), int(self._numbers["tick"]), int(self._numbers["t_capture_ns"]))

    def close(self) -> None:
        """Unmap and close the descriptor; safe to call twice."""
        if not self._map.closed:
            self._numbers = self._numbers.copy()  # nothing may point into a map that is closed
            self._state, self._images = self._state.copy(), {}
            self._map.close()
            os.close(self.fd)

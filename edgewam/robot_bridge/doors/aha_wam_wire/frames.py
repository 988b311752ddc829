"""Frames on a TCP connection: a 4-byte big-endian length and so many bytes; bounded in size and in the time they may take."""

from __future__ import annotations

import socket
import struct
import time

from edgewam.robot_bridge.serving import checks
from edgewam.robot_bridge.serving.handler import DoorError

HEADER = struct.Struct("!I")
FRAME_S = 5.0  # a frame that has begun must be complete by then: 8 MB over 20 Mbit/s
SEND_S = 5.0  # a client that does not take its reply for so long is gone


def receive(connection: socket.socket, limit: int, wait_s: float) -> bytes | None:
    """The next frame; None when the client has closed the connection, or began no frame within `wait_s`.

    Raises:
        DoorError: `too_large` by the announced length, `deadline` when it comes too slowly, `bad_request` when it breaks off.
        OSError: the connection broke.
    """
    connection.settimeout(wait_s)
    try:
        first = connection.recv(1)
    except TimeoutError:
        return None
    if not first:
        return None
    end_s = time.monotonic() + FRAME_S
    (size,) = HEADER.unpack(first + _exactly(connection, HEADER.size - 1, end_s))
    checks.check_size(size, limit)
    return _exactly(connection, size, end_s)


def _exactly(connection: socket.socket, size: int, end_s: float) -> bytes:
    data = bytearray(size)  # at most the frame limit, and pages that nobody fills cost nothing
    view = memoryview(data)
    done = 0
    while done < size:
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise DoorError("deadline", f"A frame must be complete within {FRAME_S:g} s of its first byte.")
        connection.settimeout(left_s)
        try:
            count = connection.recv_into(view[done:])
        except TimeoutError:
            continue
        if not count:
            raise DoorError("bad_request", "The connection ended in the middle of a frame.")
        done += count
    return bytes(data)


def send(connection: socket.socket, payload: bytes) -> None:
    """One frame; OSError when the client does not take it."""
    connection.settimeout(SEND_S)
    connection.sendall(HEADER.pack(len(payload)) + payload)

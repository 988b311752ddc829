"""A client of AHA-WAM's deploy protocol, written from the facts: 4-byte big-endian length and pickle."""

import contextlib
import pickle
import socket
import struct

import numpy as np

STATE = np.array([0.1, 0.5], np.float32)
FRONT = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


class Client:
    """One connection."""

    def __init__(self, address, timeout_s=10.0):
        self.socket = socket.create_connection((address.host, address.port), timeout=timeout_s)

    def send(self, message, protocol=pickle.HIGHEST_PROTOCOL):
        """One message."""
        self.send_frame(pickle.dumps(message, protocol=protocol))

    def send_frame(self, payload):
        """Any bytes as one frame."""
        self.socket.sendall(struct.pack("!I", len(payload)) + payload)

    def receive(self):
        """One reply."""
        (size,) = struct.unpack("!I", self._exactly(4))
        return pickle.loads(self._exactly(size))

    def ask(self, message):
        """Send and receive."""
        self.send(message)
        return self.receive()

    def is_closed(self):
        """Whether the server has closed it; waits for that, and closes this side."""
        with self.socket, contextlib.suppress(ConnectionError):
            return self.socket.recv(1) == b""
        return True

    def close(self):
        """Leave."""
        self.socket.close()

    def _exactly(self, size):
        data = b""
        while len(data) < size:
            packet = self.socket.recv(size - len(data))
            if not packet:
                raise ConnectionError("the server has closed the connection")
            data += packet
        return data


def infer(**changes):
    """What upstream's synchronous clients send, every key of it."""
    return {
        "type": "infer", "episode_id": 0, "step": 3, "timestamp": 1.5e9, "instruction": "reach", "state": STATE,
        "velocity": np.zeros(2, np.float32), "effort": np.zeros(2, np.float32), "base_vel": np.zeros(2, np.float32),
        "images": {"front": FRONT}, **changes,
    }  # fmt: skip


def image(**changes):
    """What upstream's image channel sends."""
    return {"type": "image", "images": {"front": FRONT}, "timestamp": 1.5e9, **changes}


def action_request(**changes):
    """What upstream's action channel sends."""
    return {"type": "action_request", "images": {"front": FRONT}, "state": STATE, "timestamp": 1.5e9, **changes}

"""A client of the openpi door, written from its documentation: websockets and msgpack, nothing of ours."""

import contextlib
import socket

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import connect as websocket

from tests.robot_bridge.doors.running import Refused

PATIENCE_S = 10.0


def connect(address, token=None):
    """Connect and read the metadata."""
    return Probe(address, token)


def array(value):
    """An array in openpi's form."""
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def plain(value):
    """A decoded map, arrays included."""
    if b"__ndarray__" in value:
        return np.frombuffer(value[b"data"], value[b"dtype"]).reshape(value[b"shape"])
    return value


class Probe:
    """One connection."""

    def __init__(self, address, token):
        self.is_open, self.exit = True, contextlib.ExitStack()
        headers = {"Authorization": f"Api-Key {token}"} if token else None
        self.socket = socket.create_connection((address.host, address.port), PATIENCE_S)
        try:
            opened = websocket("ws://door", sock=self.socket, compression=None, max_size=None, additional_headers=headers)
            self.ws = self.exit.enter_context(opened)
            self.metadata = msgpack.unpackb(self.ws.recv(PATIENCE_S), object_hook=plain)
        except InvalidStatus as error:
            self.drop()
            raise Refused("unauthorized" if error.response.status_code == 401 else "closed") from error
        except (InvalidHandshake, ConnectionClosed, OSError, EOFError) as error:
            self.drop()
            raise Refused("closed") from error

    def infer(self, images, state, prompt=None, tick=None):
        """Actions, or Refused."""
        request = {"images": {name: array(image) for name, image in images.items()}, "state": array(state)}
        request |= {} if prompt is None else {"prompt": prompt}
        request |= {} if tick is None else {"tick": tick}
        return self.ask(msgpack.packb(request))["actions"]

    def ask(self, message):
        """The decoded answer to any bytes (or text), or Refused."""
        try:
            self.ws.send(message)
            reply = self.ws.recv(PATIENCE_S)
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd else None
            raise Refused("too_large" if code == 1009 else "closed", str(error)) from error
        if isinstance(reply, str):
            raise Refused(*reply.split(": ", 1))
        return msgpack.unpackb(reply, object_hook=plain)

    def raw(self):
        """A valid request."""
        images = {name: array(np.zeros(shape, np.uint8)) for name, shape in self.metadata["cameras"].items()}
        state = array(np.zeros(self.metadata["state_dim"], np.float32))
        return msgpack.packb({"images": images, "state": state, "prompt": self.metadata["prompts"][0], "tick": 3})

    def send_raw(self, data):
        """What the bytes get.  A refusal closes the connection, so the next probe is a new one."""
        try:
            self.ask(data)
        except Refused as refused:
            self.is_open = False
            return refused.code
        return "answer"

    def big(self):
        """A message of 9 MB."""
        return self.send_raw(b"\0" * (9 << 20))

    def close(self):
        """Leave in order."""
        self.is_open = False
        self.exit.close()

    def drop(self):
        """Break off."""
        self.is_open = False
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.exit.close()  # ends the client's threads; nothing reaches the door any more
        self.socket.close()

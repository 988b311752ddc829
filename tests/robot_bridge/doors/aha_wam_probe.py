"""The probe of the aha_wam door: upstream's framing and pickles through `aha_wam_client`."""

import pickle
import struct

import numpy as np

from tests.robot_bridge.doors.aha_wam_client import Client
from tests.robot_bridge.doors.running import Refused
from tests.robot_bridge.serving.fake_engine import CAMERAS, PROMPTS

EXTRA = {"allow_pickle": "true"}
BIG_BYTES = 9 << 20


def connect(address, token=None):
    """Connect and, with a token, show it."""
    probe = Probe(address)
    if token is not None and (code := probe.send_raw(pickle.dumps({"type": "config", "token": token}))) != "answer":
        probe.drop()
        raise Refused(code)
    return probe


class Probe:
    """One connection."""

    def __init__(self, address):
        try:
            self.client = Client(address)
        except OSError as error:
            raise Refused("closed") from error
        self.is_open = True

    def infer(self, images, state, prompt=None, tick=None):
        """Actions, or Refused."""
        message = {"type": "infer", "images": images, "state": state, "instruction": prompt, "tick": tick}
        return self.ask(pickle.dumps(message))["action_chunk"]

    def ask(self, frame):
        """The reply to any frame, or Refused."""
        try:
            self.client.send_frame(frame)
            reply = self.client.receive()
        except OSError as error:
            self.is_open = False
            raise Refused("closed", str(error)) from error
        if not reply["ok"]:
            self.is_open = not reply.get("fatal", False)
            raise Refused(*reply["error"].split(": ", 1))
        return reply

    def raw(self):
        """A valid request."""
        images = {name: np.zeros(shape, np.uint8) for name, shape in CAMERAS.items()}
        message = {"type": "infer", "images": images, "state": np.zeros(2, np.float32), "instruction": PROMPTS[0], "tick": 3}
        return pickle.dumps(message)

    def send_raw(self, data):
        """What the bytes get."""
        try:
            self.ask(data)
        except Refused as refused:
            return refused.code
        return "answer"

    def big(self):
        """A frame of 9 MB, announced and begun."""
        self.client.socket.sendall(struct.pack("!I", BIG_BYTES) + b"x" * 1000)
        reply = self.client.receive()
        self.is_open = False
        assert reply["fatal"] and self.client.is_closed()
        return reply["error"].split(":")[0]

    def close(self):
        """Leave."""
        self.is_open = False
        self.client.close()

    drop = close

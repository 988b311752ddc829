"""A door in a thread of the test's process, and what a probe of a door offers to the contract tests.

`tests/robot_bridge/doors/<name>_probe.py` holds a small client of the protocol, written from the protocol facts and sharing no
code with the door.  It offers:

    connect(address, token=None) -> Probe                 raises Refused("unauthorized") or Refused("closed")
    Probe.infer(images, state, prompt=None, tick=None)    actions float32 [rows, D]; raises Refused(code)
    Probe.raw() -> bytes                                  one valid request, without the framing of its transport
    Probe.send_raw(data) -> str                           "answer", a code of DoorError, or "closed"
    Probe.is_open                                         False once a refusal has ended the connection
    Probe.big() -> str                                    announces or sends more than the limit; as `send_raw`
    Probe.close(), Probe.drop()                           leaves in order; breaks off without a word
    ADDRESS (optional), EXTRA (optional)                  where to listen, and `DoorOptions.extra`
"""

import threading
from contextlib import contextmanager
from importlib import import_module

from edgewam.core import plugins
from edgewam.robot_bridge.serving.access import Address
from edgewam.robot_bridge.serving.door import DoorOptions

START_S, END_S = 20.0, 10.0


class Refused(Exception):
    """The door refused; `code` is one of DoorError's, or "closed"."""

    def __init__(self, code, message=""):
        super().__init__(f"{code}: {message}")
        self.code = code


def probe_of(name):
    """The probe module of a door."""
    return import_module(f"tests.robot_bridge.doors.{name}_probe")


@contextmanager
def running(name, handler, address=None, **options):
    """Serve `handler` with a door and yield the address it got; afterwards the door must have ended by itself, without error."""
    probe = probe_of(name)
    ready, found, errors = threading.Event(), [], []
    quit_ = threading.Event()

    def on_ready(at):
        found.append(at)
        ready.set()

    def serve():
        try:
            settings = {"extra": getattr(probe, "EXTRA", {}), **options}
            door = plugins.load("door", name)
            door.serve(
                handler, address or getattr(probe, "ADDRESS", Address()), DoorOptions(quit=quit_, on_ready=on_ready, **settings)
            )
        except BaseException as error:
            errors.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=serve, name=f"door {name}")
    thread.start()
    try:
        assert ready.wait(START_S), f"door {name} did not start"
        if errors:
            raise errors[0]
        yield found[0]
    finally:
        quit_.set()
        thread.join(END_S)
        assert not thread.is_alive(), f"door {name} did not end when it was asked to"
    if errors:
        raise errors[0]

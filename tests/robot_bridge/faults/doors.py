"""The faults at a door: each function is given the name of a door, does its worst, and returns what was seen.

Afterwards an honest client must be served by the same door; an AssertionError says what went wrong.  The small clients that speak
each protocol are the ones of the contract tests (tests/robot_bridge/doors).
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np

from edgewam.core import plugins
from edgewam.robot_bridge.serving.access import Address
from tests.robot_bridge.doors.running import Refused, probe_of, running
from tests.robot_bridge.serving.fake_engine import FakeEngine, images, session, state
from tests.waiting import wait_for

PATIENCE_S = 5.0  # a door notices within this time that a client has left
OPEN_S = 0.5  # that a client gets to introduce itself in these tests
TOKEN = "0123456789abcdef" * 4
CODES = {"bad_request", "too_large", "unauthorized", "closed"}


def names() -> list[str]:
    """The doors that keep connections; ros2 has none (bad samples: tests/robot_bridge/doors/test_ros2.py)."""
    return [name for name in plugins.names("door") if find_spec(f"tests.robot_bridge.doors.{name}_probe")]


class Served:
    """A door in service: probes connect, `raw` gives a bare connection."""

    def __init__(self, name: str, engine: FakeEngine, handler: Any, address: Address) -> None:
        self.probe, self.engine, self.handler, self.address = probe_of(name), engine, handler, address

    def raw(self) -> socket.socket:
        """A connection that has said nothing yet."""
        if self.address.path is None:
            return socket.create_connection((self.address.host, self.address.port), PATIENCE_S)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE_S)
        connection.connect(str(self.address.path))
        return connection

    def is_well(self, token: str | None = None) -> None:
        """An honest client gets its answer."""
        wait_for(lambda: self.handler.controller is None, "the client has left")
        client = self.probe.connect(self.address, token)
        try:
            actions = client.infer(images(3), state(0.25, 0.5))
            assert np.isfinite(actions).all() and actions[0, 0] == 3.25
        finally:
            client.close()


@contextlib.contextmanager
def served(name: str, **options: Any) -> Iterator[Served]:
    """A door over a fake engine."""
    engine = FakeEngine()
    handler = session(engine)
    with running(name, handler, **options) as address:
        yield Served(name, engine, handler, address)


def is_closed(connection: socket.socket, timeout_s: float) -> bool:
    """Whether the other side hangs up within the time; what it says before is read."""
    connection.settimeout(timeout_s)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def said(codes: Counter[str]) -> str:
    """Outcomes with their numbers."""
    return ", ".join(f"{code} {count}" for code, count in sorted(codes.items()))


def garbage(name: str) -> str:
    """Random bytes instead of the protocol, and inside of it."""
    rng, seen = random.Random(3), Counter[str]()
    with served(name, open_s=OPEN_S) as door:
        for _ in range(5):
            with door.raw() as connection, contextlib.suppress(OSError):
                connection.sendall(rng.randbytes(512))
                seen["hung up" if is_closed(connection, PATIENCE_S) else "left open"] += 1
        for _ in range(5):
            client = door.probe.connect(door.address)
            seen[client.send_raw(rng.randbytes(256))] += 1
            client.drop()
        door.is_well()
    assert "left open" not in seen and set(seen) <= CODES | {"hung up"}, seen
    return said(seen)


def oversize(name: str) -> str:
    """More than the limit."""
    with served(name) as door:
        client = door.probe.connect(door.address)
        code = client.big()
        client.drop()
        door.is_well()
    assert code in ("too_large", "closed"), code
    return str(code)


def truncated(name: str) -> str:
    """A request that ends in the middle."""
    seen = Counter[str]()
    with served(name) as door:
        for part in (0.1, 0.5, 0.9):
            client = door.probe.connect(door.address)
            data = client.raw()
            seen[client.send_raw(data[: round(part * len(data))])] += 1
            client.drop()
        door.is_well()
    assert set(seen) <= CODES, seen
    return said(seen)


def slow_loris(name: str) -> str:
    """Connections that never finish a sentence; the door lets go of them and serves others meanwhile."""
    with served(name, open_s=OPEN_S) as door, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(door.raw()) for _ in range(8)]
        end, begin = time.monotonic() + 3 * OPEN_S, time.monotonic()
        door.is_well()
        served_s = time.monotonic() - begin
        while time.monotonic() < end:
            for connection in slow:
                with contextlib.suppress(OSError):
                    connection.send(b"G")
            time.sleep(0.1)
        closed = sum(is_closed(connection, PATIENCE_S) for connection in slow)
        door.is_well()
    assert closed == 8, f"{closed} of 8 were closed"
    assert served_s < PATIENCE_S
    return f"{closed} of 8 closed within {3 * OPEN_S:g} s, others served meanwhile"


def hundred_connects(name: str) -> str:
    """More connections than a door keeps; the controller does not notice."""
    with served(name, open_s=OPEN_S) as door, contextlib.ExitStack() as stack:
        client = door.probe.connect(door.address)
        client.infer(images(), state())
        crowd = []
        for _ in range(100):
            with contextlib.suppress(OSError):
                crowd.append(stack.enter_context(door.raw()))
        assert client.infer(images(2), state(0.5, 0.5))[0, 0] == 2.5
        closed = sum(is_closed(connection, PATIENCE_S) for connection in crowd)
        assert client.infer(images(1), state(0.5, 0.5))[0, 0] == 1.5
        client.close()
        door.is_well()
    assert closed == len(crowd), f"{closed} of {len(crowd)} were closed"
    return f"{len(crowd)} connected, all closed; the controller was served"


def disconnect(name: str) -> str:
    """The controller vanishes while the engine works for it."""
    with served(name) as door:
        door.engine.stall_s = 0.3
        client = door.probe.connect(door.address)
        asking = threading.Thread(target=_ask, args=(client,))
        asking.start()
        wait_for(lambda: bool(door.engine.calls))
        client.drop()
        asking.join()
        door.engine.stall_s = 0.0
        door.is_well()
    return "control was free again, the next client was served"


def _ask(client: Any) -> None:
    with contextlib.suppress(Refused):
        client.infer(images(), state())


def wrong_token(name: str) -> str:
    """Only who shows the token comes in."""
    seen = Counter[str]()
    with served(name, token=TOKEN) as door:
        for token in (TOKEN[:-1] + "0", "", None):
            with contextlib.ExitStack() as stack:
                try:
                    client = door.probe.connect(door.address, token)
                    stack.callback(client.drop)
                    client.infer(images(), state())
                    seen["LET IN"] += 1
                except Refused as refused:
                    seen[refused.code] += 1
        door.is_well(TOKEN)
        assert not [call for call in door.engine.calls[:-1]], "an engine worked for a stranger"
    assert set(seen) <= {"unauthorized", "closed"}, seen
    return said(seen)

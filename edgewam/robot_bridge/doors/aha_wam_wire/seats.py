"""Which connections may speak for one robot: upstream's asynchronous client uses two, one for images and one for actions.

The protocol has no session, so all connections from one peer address are one client of the handler.  Within it there are two
seats, and each belongs to one connection until that closes or falls silent: a second program there cannot drive as well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edgewam.robot_bridge.serving.handler import DoorError

HANDOVER_S = 0.3  # a client that closes and connects again may be faster than the thread that learns of the closing
SILENT_S = 10.0  # a connection that was cut without a word is replaced after this, as a silent controller is
ACTIONS, IMAGES = "actions", "images"
# the synchronous flow sends both in one request, so nobody else's image may come in between
SEATS_OF = {"infer": (ACTIONS, IMAGES), "reset": (ACTIONS,), "action_request": (ACTIONS,), "image": (IMAGES,)}


@dataclass
class _Seat:
    connection: int
    seen_s: float


@dataclass
class Peer:
    """One client of the handler.  has_context: a chunk was computed since the last reset, so a planner context exists."""

    client: str
    seats: dict[str, _Seat] = field(default_factory=dict)
    has_context: bool = False


class Seats:
    """All peers.  Safe to call from several threads.  release: told the client of a peer whose last seat is free."""

    def __init__(self, release: Callable[[str], None]) -> None:
        self._release = release
        self._changed = threading.Condition()
        self._peers: dict[str, Peer] = {}

    def take(self, address: str, seat: str, connection: int) -> Peer:
        """Take or keep a seat.

        Raises:
            DoorError: `not_controller`, another connection from there has it.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_free(address, seat, connection), HANDOVER_S):
                raise DoorError("not_controller", f"Another connection from {address} sends the {seat}. Close it first.")
            peer = self._peers.setdefault(address, Peer(f"aha_wam {address}"))
            peer.seats[seat] = _Seat(connection, time.monotonic())
            return peer

    def leave(self, address: str, connection: int) -> None:
        """A connection is gone; when it was the last one with a seat, so is the handler's client."""
        with self._changed:
            peer = self._peers.get(address)
            if peer is None or all(seat.connection != connection for seat in peer.seats.values()):
                return
            peer.seats = {name: seat for name, seat in peer.seats.items() if seat.connection != connection}
            if not peer.seats:
                del self._peers[address]
                self._release(peer.client)  # inside the lock: a connection that comes now is a new client, not this one
            self._changed.notify_all()

    def _is_free(self, address: str, seat: str, connection: int) -> bool:
        peer = self._peers.get(address)
        holder = None if peer is None else peer.seats.get(seat)
        return holder is None or holder.connection == connection or time.monotonic() - holder.seen_s > SILENT_S

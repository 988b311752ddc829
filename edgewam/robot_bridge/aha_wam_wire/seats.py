"""Which connections may speak for one robot: upstream's asynchronous client uses two, one for images and one for actions.

The protocol has no session, so all connections from one peer address are one client of the handler.  Within it there are two
seats, and each belongs to one connection until that closes: a second program on the same computer cannot drive as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from edgewam.robot_bridge.serving.handler import DoorError

HANDOVER_S = 0.3  # a client that closes and connects again may be faster than the thread that learns of the closing
ACTIONS, IMAGES = "actions", "images"
SEAT_OF = {"infer": ACTIONS, "reset": ACTIONS, "action_request": ACTIONS, "image": IMAGES}


@dataclass
class Peer:
    """One client of the handler.  has_context: a chunk was computed since the last reset, so a planner context exists."""

    client: str
    seats: dict[str, int] = field(default_factory=dict)  # seat -> connection number
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
            self._changed.wait_for(lambda: self._holder(address, seat) in (None, connection), HANDOVER_S)
            peer = self._peers.setdefault(address, Peer(f"aha_wam {address}"))
            if peer.seats.setdefault(seat, connection) != connection:
                raise DoorError("not_controller", f"Another connection from {address} sends the {seat}. Close it first.")
            return peer

    def leave(self, address: str, connection: int) -> None:
        """A connection is gone; when it was the last one with a seat, so is the handler's client."""
        with self._changed:
            peer = self._peers.get(address)
            if peer is None or connection not in peer.seats.values():
                return
            peer.seats = {seat: holder for seat, holder in peer.seats.items() if holder != connection}
            if not peer.seats:
                del self._peers[address]
                self._release(peer.client)  # inside the lock: a connection that comes now is a new client, not this one
            self._changed.notify_all()

    def _holder(self, address: str, seat: str) -> int | None:
        peer = self._peers.get(address)
        return None if peer is None else peer.seats.get(seat)

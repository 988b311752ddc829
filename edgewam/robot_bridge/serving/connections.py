"""How a door with plain sockets accepts: one thread per connection, at most so many of them, and strangers make room first.

A stranger is a connection that has not introduced itself yet; what that means is the protocol's.  When every place is taken, the
stranger who has been there for longest goes, and the newcomer when there is none.  So who only connects keeps nobody out.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from edgewam.robot_bridge.serving.access import Address, listen
from edgewam.robot_bridge.serving.door import POLL_S, DoorOptions

PART_S = 0.5  # how long a client that was refused may go on sending, so that it reads why
JOIN_S = 5.0  # for a conversation in the middle of a request when the door ends


@dataclass(frozen=True, eq=False)
class Connection:
    """plug: an accepted socket.  host, port: the peer's; "local" and 0 for a Unix socket.  number: its own, from 1."""

    plug: socket.socket
    host: str
    port: int
    number: int

    @property
    def name(self) -> str:
        """For people, and unlike any other connection's."""
        return f"{self.host}:{self.port}#{self.number}" if self.port else f"{self.host}#{self.number}"

    def part(self) -> None:
        """End a conversation such that the peer gets the last message, which a socket closed with unread bytes throws away."""
        with contextlib.suppress(OSError):
            self.plug.shutdown(socket.SHUT_WR)
            end_s = time.monotonic() + PART_S
            while (left_s := end_s - time.monotonic()) > 0:
                self.plug.settimeout(left_s)
                if not self.plug.recv(1 << 16):
                    return


class Connections:
    """The open connections of a door.  `serve` may be called once."""

    def __init__(self, options: DoorOptions, converse: Callable[[Connection], None]) -> None:
        """`converse` runs in a thread per connection; an OSError from it ends that connection, and so does its return."""
        self._options, self._converse = options, converse
        self._lock = threading.Lock()
        self._open: dict[Connection, threading.Thread] = {}
        self._strangers: dict[Connection, None] = {}  # oldest first

    def serve(self, address: Address) -> None:
        """Listen and accept until `options.quit` is set; then every conversation reads the end of its connection.

        Raises:
            EdgewamError: the address cannot be had, or others can reach it and there is no token.
        """
        options = self._options
        listener, address = listen(address, options.token)
        with listener:
            listener.settimeout(POLL_S)
            options.on_ready(address)
            numbers = itertools.count(1)
            while not options.quit.is_set():
                with contextlib.suppress(TimeoutError, ConnectionError):  # nobody came, or went again before we looked
                    plug, peer = listener.accept()
                    host, port = peer[:2] if isinstance(peer, tuple) else ("local", 0)
                    self._admit(Connection(plug, host, port, next(numbers)))
        self._end()

    def introduce(self, connection: Connection) -> None:
        """It is no stranger any more."""
        with self._lock:
            self._strangers.pop(connection, None)

    def _admit(self, connection: Connection) -> None:
        """Start its conversation, when there is a place or a stranger to take one from."""
        thread = threading.Thread(target=self._run, args=(connection,), daemon=True)
        with self._lock:
            if len(self._open) >= self._options.max_connections:
                if not self._strangers:
                    connection.plug.close()
                    return
                oldest = next(iter(self._strangers))
                self._forget(oldest)
                _shut(oldest.plug, socket.SHUT_RDWR)
            self._open[connection] = thread
            self._strangers[connection] = None
        thread.start()

    def _run(self, connection: Connection) -> None:
        try:
            with connection.plug as plug, contextlib.suppress(OSError):
                if plug.family != socket.AF_UNIX:
                    plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._converse(connection)
        finally:
            with self._lock:
                self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        self._open.pop(connection, None)
        self._strangers.pop(connection, None)

    def _end(self) -> None:
        with self._lock:
            threads = list(self._open.values())
            for connection in self._open:
                _shut(connection.plug, socket.SHUT_RD)  # it may still say goodbye
        for thread in threads:
            thread.join(JOIN_S)


def _shut(plug: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        plug.shutdown(how)

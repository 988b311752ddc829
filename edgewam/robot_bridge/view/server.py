"""The server of the live page: connections, watchers and what is sent to them; what one request may do is in `request`.

It listens on this machine only, unless an address and a token are given.  Watchers and connections are few, nothing waits for
a slow one, and nothing is kept for one that has missed an event.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import ThreadingHTTPServer
from typing import Any, Protocol

from edgewam.robot_bridge.serving.access import Address
from edgewam.robot_bridge.view.request import REQUEST_S, Request

MAX_WATCHERS = 8  # event streams at a time
MAX_CONNECTIONS = 32
SLOW_S = 1.0  # a watcher that does not read for so long is dropped
_SEND_BUFFER = 1 << 18  # a slow watcher lags by this much at most


class Source(Protocol):
    """Where the server gets what it shows."""

    def page(self, token: str, nonce: str) -> str:
        """The page as HTML; `token` allows it to stop, `nonce` allows its script and style."""

    def hello(self) -> dict[str, Any]:
        """What a page needs first."""

    def png(self, camera: str) -> bytes | None:
        """The newest picture of a camera."""

    def stop(self) -> int:
        """Ask io to latch STOP; returns how often that was asked for."""


class ViewServer(ThreadingHTTPServer):
    """Serves a `Source` on a listening socket.  `publish` hands an event to every watcher; it never waits for one."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, address: Address, source: Source, token: str | None) -> None:
        super().__init__((address.host, address.port), Request, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.source, self.access_token = source, token
        self.page_token = secrets.token_urlsafe(24)
        names = {"localhost", "127.0.0.1", "[::1]", address.host}  # a token makes every other name as good
        self.hosts = {f"{name}:{address.port}" for name in names} if token is None else None
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._requests: dict[socket.socket, float] = {}  # connections that are not event streams, and since when
        self._lock = threading.Lock()
        self._event = threading.Condition()
        self._number, self._payload, self.num_watchers = 0, b"", 0
        self.is_ending = False

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread per connection, and not too many of them."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._lock:
            self._requests[request] = time.monotonic()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """See `process_request`."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._requests.pop(request, None)
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is no news."""

    def drop_slow_requests(self) -> None:
        """End connections that have asked nothing for too long; event streams have their own limit."""
        with self._lock:
            for request, since in self._requests.items():
                if time.monotonic() - since > REQUEST_S:
                    _shut(request)

    def publish(self, event: str, data: Mapping[str, Any]) -> None:
        """Send to all watchers; who has not taken the last event yet skips it."""
        with self._event:
            self._number, self._payload = self._number + 1, _event(event, data)
            self._event.notify_all()

    def end(self) -> None:
        """Tell the watchers that the run is over, and stop serving."""
        self.is_ending = True
        self.publish("end", {})
        time.sleep(0.1)  # for the threads to send it
        self.shutdown()
        self.server_close()

    def enter(self, connection: socket.socket) -> bool:
        """Whether there is room for another watcher; then `watch` must follow."""
        with self._lock:
            if self.num_watchers >= MAX_WATCHERS:
                return False
            self.num_watchers += 1
            self._requests.pop(connection, None)
            return True

    def watch(self, connection: socket.socket) -> None:
        """Serve one event stream until it breaks or lags."""
        try:
            connection.settimeout(SLOW_S)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            sent = self._number  # before the greeting: an event may come twice, but none is left out
            connection.sendall(_event("hello", self.source.hello() | {"token": self.page_token}))
            while not self.is_ending:
                with self._event:
                    self._event.wait_for(lambda sent=sent: self._number != sent, timeout=SLOW_S)  # type: ignore[misc]
                    payload, is_new, sent = self._payload, self._number != sent, self._number
                connection.sendall(payload if is_new else b": still here\n\n")
        except OSError:
            pass  # it has gone, or reads too slowly
        finally:
            with self._lock:
                self.num_watchers -= 1


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, allow_nan=False, separators=(',', ':'))}\n\n".encode()


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has gone already
        connection.shutdown(socket.SHUT_RDWR)


def serve_in_thread(server: ViewServer) -> Callable[[], None]:
    """Start serving; returns what ends it."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()

    def end() -> None:
        server.end()
        thread.join(2.0)

    return end

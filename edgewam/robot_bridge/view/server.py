"""The HTTP side of the live page: one page, one stream of events, pictures, and a stop.  Nothing here can arm or reset.

It listens on this machine only, unless an address and a token are given.  A page of another origin can neither read (Host
check against DNS rebinding) nor stop (Origin and a token that only our page holds).  Refusals are codes, not tracebacks.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from edgewam.robot_bridge.serving.access import Address, is_token

MAX_WATCHERS = 8  # event streams at a time
MAX_CONNECTIONS = 32
SLOW_S = 1.0  # a watcher that does not read for so long is dropped
REQUEST_S = 5.0  # a request that is not asked and answered within this is ended
_SEND_BUFFER = 1 << 18  # a slow watcher lags by this much at most
_CODES = {
    HTTPStatus.BAD_REQUEST: "bad_request", HTTPStatus.REQUEST_URI_TOO_LONG: "too_large",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "too_large", HTTPStatus.NOT_IMPLEMENTED: "method_not_allowed",
}  # fmt: skip


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
        super().__init__((address.host, address.port), _Request, bind_and_activate=False)
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


class _Request(BaseHTTPRequestHandler):
    """One request per connection; every answer closes it."""

    server: ViewServer
    server_version, sys_version = "edgewam", ""
    timeout = REQUEST_S

    def do_GET(self) -> None:
        """The page, its events, and pictures."""
        if not self._is_welcome():
            return
        path = self.path.partition("?")[0]
        if path == "/":
            nonce = secrets.token_urlsafe(16)
            page = self.server.source.page(self.server.page_token, nonce)
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", page.encode(), _policy(nonce))
        elif path == "/events":
            self._watch()
        elif path.startswith("/camera/") and path.endswith(".png"):
            png = self.server.source.png(path.removeprefix("/camera/").removesuffix(".png"))
            if png is None:
                self._refuse(HTTPStatus.NOT_FOUND, "no_image")
            else:
                self._answer(HTTPStatus.OK, "image/png", png)
        elif path == "/stop":
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed")
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "not_found")

    def do_POST(self) -> None:
        """The stop."""
        if not self._is_welcome():
            return
        if self.path != "/stop":
            self._refuse(HTTPStatus.NOT_FOUND, "not_found")
        elif not self._is_same_origin():
            self._refuse(HTTPStatus.FORBIDDEN, "wrong_origin")
        elif not hmac.compare_digest(self._header("X-Edgewam-Token").encode(), self.server.page_token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "wrong_token")
        else:
            self._json(HTTPStatus.OK, {"stops": self.server.source.stop()})

    def _watch(self) -> None:
        if not self.server.enter(self.connection):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too_many_clients")
            return
        try:
            self.send_response(HTTPStatus.OK)
            self._headers("text/event-stream")
            self.end_headers()
        finally:
            self.server.watch(self.connection)  # also counts out a connection that is gone already

    def _header(self, name: str) -> str:
        return self.headers.get(name) or ""

    def _is_welcome(self) -> bool:
        hosts = self.server.hosts
        if hosts is not None and self._header("Host").lower() not in hosts:
            self._refuse(HTTPStatus.FORBIDDEN, "forbidden_host")
        elif not is_token(_credential(self._header("Authorization")), self.server.access_token):
            self._refuse(HTTPStatus.UNAUTHORIZED, "unauthorized", {"WWW-Authenticate": 'Basic realm="edgewam"'})
        else:
            return True
        return False

    def _is_same_origin(self) -> bool:
        origin, host = self._header("Origin"), self._header("Host")
        site = self.headers.get("Sec-Fetch-Site", "same-origin")
        # https: a proxy in front that does TLS
        return origin in (f"http://{host}", f"https://{host}") and site == "same-origin"

    def _refuse(self, status: HTTPStatus, code: str, headers: Mapping[str, str] | None = None) -> None:
        self._json(status, {"error": code}, headers)

    def _json(self, status: HTTPStatus, data: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        self._answer(status, "application/json", json.dumps(data).encode(), headers)

    def _answer(self, status: HTTPStatus, kind: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        self._headers(kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _headers(self, kind: str) -> None:
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Connection", "close")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server refuses by itself, such as a malformed request, as a code too."""
        self.close_connection = True
        status = HTTPStatus(code)
        self._refuse(status, _CODES.get(status, "bad_request"))

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""


def _policy(nonce: str) -> dict[str, str]:
    """Nothing from anywhere else, no frames around it, and only the script and style that carry the nonce."""
    rules = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return {"Content-Security-Policy": rules}


def _credential(header: str) -> str | None:
    """The secret of an Authorization header: `Bearer TOKEN`, or the password that a browser asks its user for."""
    kind, _, value = header.partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def serve_in_thread(server: ViewServer) -> Callable[[], None]:
    """Start serving; returns what ends it."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()

    def end() -> None:
        server.end()
        thread.join(2.0)

    return end

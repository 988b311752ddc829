"""What a browser may ask of the live page: the page, its stream of events, pictures, and a stop.  Nothing here can arm or reset.

A page of another origin can neither read (Host check against DNS rebinding) nor stop (Origin and a token that only our page
holds).  Refusals are codes, not tracebacks.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from edgewam.robot_bridge.serving.access import is_token

if TYPE_CHECKING:
    from edgewam.robot_bridge.view.server import ViewServer

REQUEST_S = 5.0  # a request that is not asked and answered within this is ended
_CODES = {
    HTTPStatus.BAD_REQUEST: "bad_request", HTTPStatus.REQUEST_URI_TOO_LONG: "too_large",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "too_large", HTTPStatus.NOT_IMPLEMENTED: "method_not_allowed",
}  # fmt: skip


class Request(BaseHTTPRequestHandler):
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

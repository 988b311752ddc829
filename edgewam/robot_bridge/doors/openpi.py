"""The openpi door: WebSocket and msgpack-numpy as the PyPI package `openpi-client` speaks them (facts/robot.md section 3).

The server first sends its metadata; then every binary message is a request and gets one answer:

    {"images": {camera: uint8 [H, W, 3] or [3, H, W]}, "state": [D], "prompt": str, "tick": int}   prompt and tick optional
    {"observation/<camera>" or "observation/images/<camera>": image, "observation/state": [D], ...}  the same, flat
    -> {"actions": float32 [horizon, D], "server_timing": {"infer_ms", "prev_total_ms", ...}, "tick", "context_number", ...}
    {"command": "reset", "prompt": str, "seed": int} or {"command": "stop"} -> {"ok": True}         ours, not openpi's

A refusal is a text message `code: sentence` and then close 1011, as openpi does it (ours never holds a traceback); a client that
connects again is the controller again.  `GET /healthz` answers `OK`.  With a token the header `Authorization: Api-Key TOKEN` is
asked for; web pages (requests with an Origin) are always refused.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from edgewam.core.errors import require
from edgewam.robot_bridge.serving import access, checks, packing
from edgewam.robot_bridge.serving.access import Address
from edgewam.robot_bridge.serving.connections import Connection, Connections
from edgewam.robot_bridge.serving.door import DoorOptions, check_options
from edgewam.robot_bridge.serving.handler import DoorError, Handler, Look
from edgewam.robot_bridge.serving.websocket import WebSocket

DEFAULT_PORT = 8000
INTERNAL_ERROR = 1011
_FLAT, _FLAT_IMAGES = "observation/", "observation/images/"


def serve(handler: Handler, address: Address, options: DoorOptions) -> None:
    """Serve until `options.quit` is set; EdgewamError for settings, of which this door has none."""
    check_options("openpi", options.extra, ())
    require("websockets.server", extra="serve")
    require("msgpack", extra="serve")
    _Door(handler, options).connections.serve(address)


def look_of(request: Mapping[str, Any], metadata: Mapping[str, Any]) -> Look:
    """An observation in either form, checked against the cameras and the state of the metadata.

    Raises:
        DoorError: `bad_request`, naming what is needed.
    """
    cameras, state_dim = metadata["cameras"], metadata["state_dim"]
    images, state = request.get("images"), request.get("state", request.get(f"{_FLAT}state"))
    if images is None:
        flat = {name: request.get(_FLAT_IMAGES + name, request.get(_FLAT + name)) for name in cameras}
        images = {name: image for name, image in flat.items() if image is not None}
    if state is None:
        raise DoorError(
            "bad_request", f"There is no state. Needed: state float32[{state_dim}] and images of {', '.join(cameras)}."
        )
    prompt, tick = request.get("prompt"), request.get("tick")
    return Look(
        checks.images_of(images, cameras, allow_chw=True),
        checks.state_of(state, state_dim),
        None if prompt is None else checks.prompt_of(prompt),
        None if tick is None else checks.tick_of(tick),
    )


def answer(handler: Handler, client: str, message: bytes | str) -> dict[str, Any]:
    """What a message gets, as plain data.

    Raises:
        DoorError: the refusal that the client is to see.
    """
    begin = time.perf_counter()
    if isinstance(message, str):
        raise DoorError("bad_request", "Send binary msgpack messages, not text.")
    request = packing.unpack(message)
    if not isinstance(request, dict):
        raise DoorError("bad_request", "A request must be a map.")
    command = request.get("command", "infer")
    if command == "stop":
        handler.stop(client)
        return {"ok": True}
    if command == "reset":
        handler.reset(client, request.get("prompt"), request.get("seed"))
        return {"ok": True}
    if command != "infer":
        raise DoorError("bad_request", f"Unknown command {checks.shown(command)}. Known: infer (or none), reset, stop.")
    found = handler.infer(client, look_of(request, handler.metadata))
    timing = {**found.timing, "infer_ms": (time.perf_counter() - begin) * 1e3}
    context = {"context_number": found.context_number, "context_age_ticks": found.context_age_ticks}
    return {"actions": found.actions, "server_timing": timing, "tick": found.tick, **context}


class _Door:
    """What all connections share."""

    def __init__(self, handler: Handler, options: DoorOptions) -> None:
        self._handler, self._options = handler, options
        self.connections = Connections(options, self._converse)

    def _converse(self, connection: Connection) -> None:
        """One client's requests in order, until it leaves, falls silent or is refused."""
        channel = WebSocket(connection, self._options.max_frame_bytes)
        try:
            request = channel.request(self._options.open_s)
            if request is not None and channel.respond(self._admit(channel.protocol, request)):
                self.connections.introduce(connection)
                self._exchange(channel, connection.name)
            channel.close()
        finally:
            self._handler.release(connection.name)

    def _admit(self, protocol: Any, request: Any) -> Any:
        """Health for everybody; a connection for whoever shows the token."""
        if request.path == "/healthz":
            return protocol.reject(HTTPStatus.OK, "OK\n")
        given = request.headers.get_all("Authorization")
        key = given[0].removeprefix("Api-Key ") if len(given) == 1 and given[0].startswith("Api-Key ") else None
        if access.is_token(key, self._options.token):
            return protocol.accept(request)
        return protocol.reject(HTTPStatus.UNAUTHORIZED, "unauthorized: send the header 'Authorization: Api-Key TOKEN'\n")

    def _exchange(self, channel: WebSocket, client: str) -> None:
        previous_ms = None
        channel.send(packing.pack(dict(self._handler.metadata)))
        while (message := channel.receive(self._options.idle_s)) is not None:
            begin = time.perf_counter()
            try:
                reply = answer(self._handler, client, message)
            except Exception as error:
                _refuse(channel, error)
                return
            if previous_ms is not None and "server_timing" in reply:
                reply["server_timing"]["prev_total_ms"] = previous_ms
            channel.send(packing.pack(reply))
            previous_ms = (time.perf_counter() - begin) * 1e3


def _refuse(channel: WebSocket, error: Exception) -> None:
    if not isinstance(error, DoorError):
        logging.getLogger(__name__).error("the handler failed", exc_info=error)
        error = DoorError("internal", "The server failed; its log says more.")
    channel.send(f"{error.code}: {error}")
    channel.close(INTERNAL_ERROR, error.code)

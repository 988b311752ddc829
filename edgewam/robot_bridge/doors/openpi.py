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

import asyncio
import itertools
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

from edgewam.core.errors import require
from edgewam.robot_bridge.serving import access, checks, packing
from edgewam.robot_bridge.serving.access import Address
from edgewam.robot_bridge.serving.door import POLL_S, DoorOptions, check_options
from edgewam.robot_bridge.serving.handler import DoorError, Handler, Look

DEFAULT_PORT = 8000
PING_S = 20.0  # a peer that answers no ping for so long is gone
CLOSE_S = 2.0
QUEUED_FRAMES = 2  # a client waits for its answer, so more in flight is a mistake or an attack
MAX_UNREAD_BYTES = 1 << 18  # answers are 4 kB; who leaves so much unread floods us with pings, whose echoes nothing else bounds
INTERNAL_ERROR = 1011
_FLAT, _FLAT_IMAGES = "observation/", "observation/images/"


def serve(handler: Handler, address: Address, options: DoorOptions) -> None:
    """Serve until `options.quit` is set; EdgewamError for settings, of which this door has none."""
    check_options("openpi", options.extra, ())
    require("websockets.asyncio.server", extra="serve")
    require("msgpack", extra="serve")
    listener, address = access.listen(address, options.token)
    with listener, ThreadPoolExecutor(options.max_connections, "openpi") as pool:
        asyncio.run(_Server(handler, options, pool).run(listener, address))


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


class _Server:
    def __init__(self, handler: Handler, options: DoorOptions, pool: ThreadPoolExecutor) -> None:
        self._handler, self._options, self._pool = handler, options, pool
        self._numbers = itertools.count(1)
        self._num_sockets = 0
        self._strangers: dict[Any, None] = {}  # connections that have not introduced themselves yet, oldest first

    async def run(self, listener: Any, address: Address) -> None:
        options, server = self._options, require("websockets.asyncio.server", extra="serve")
        quiet = logging.getLogger("edgewam.doors.openpi")  # what strangers send is theirs to see, not a traceback of ours
        quiet.addHandler(logging.NullHandler())
        quiet.propagate = False
        serving = server.unix_serve if address.path is not None else server.serve
        async with serving(
            self._client,
            sock=listener,
            create_connection=self._bounded(server.ServerConnection),
            process_request=self._admit,
            origins=[None],
            compression=None,
            max_size=options.max_frame_bytes,
            max_queue=QUEUED_FRAMES,
            open_timeout=options.open_s,
            ping_interval=PING_S,
            ping_timeout=PING_S,
            close_timeout=CLOSE_S,
            server_header="edgewam",
            logger=quiet,
        ):
            options.on_ready(address)
            while not options.quit.is_set():
                await asyncio.sleep(POLL_S)

    def _bounded(self, base: Any) -> Any:
        """The connection class; beyond `max_connections` it drops who says nothing for longest, and always peers that never read.

        So strangers who only connect keep nobody out who introduces himself; without any of them the newcomer is dropped.
        """
        counter, limit = self, self._options.max_connections

        class Connection(base):  # type: ignore[misc]
            def connection_made(self, transport: Any) -> None:
                counter._num_sockets += 1
                counter._strangers[self] = None
                super().connection_made(transport)
                if counter._num_sockets > limit:
                    oldest = next(iter(counter._strangers))
                    del counter._strangers[oldest]
                    oldest.transport.abort()

            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                    self.transport.abort()

            def connection_lost(self, exc: Exception | None) -> None:
                counter._num_sockets -= 1
                counter._strangers.pop(self, None)
                super().connection_lost(exc)

        return Connection

    def _admit(self, connection: Any, request: Any) -> Any:
        """Health for everybody; a connection for whoever shows the token."""
        if request.path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        given = request.headers.get_all("Authorization")
        key = given[0].removeprefix("Api-Key ") if len(given) == 1 and given[0].startswith("Api-Key ") else None
        if access.is_token(key, self._options.token):
            return None
        return connection.respond(HTTPStatus.UNAUTHORIZED, "unauthorized: send the header 'Authorization: Api-Key TOKEN'\n")

    async def _client(self, connection: Any) -> None:
        exceptions = require("websockets.exceptions", extra="serve")
        self._strangers.pop(connection, None)
        client = f"{_peer(connection)}#{next(self._numbers)}"
        loop = asyncio.get_running_loop()
        try:
            await self._converse(connection, client)
        except (exceptions.ConnectionClosed, TimeoutError):
            pass  # it left, or was silent for too long; leaving this function closes the connection
        finally:
            await loop.run_in_executor(self._pool, self._handler.release, client)

    async def _converse(self, connection: Any, client: str) -> None:
        loop, previous_ms = asyncio.get_running_loop(), None
        await connection.send(packing.pack(dict(self._handler.metadata)))
        while True:
            async with asyncio.timeout(self._options.idle_s):
                message = await connection.recv()
            begin = time.perf_counter()
            try:
                reply = await loop.run_in_executor(self._pool, answer, self._handler, client, message)
            except Exception as error:
                await self._refuse(connection, error)
                return
            if previous_ms is not None and "server_timing" in reply:
                reply["server_timing"]["prev_total_ms"] = previous_ms
            async with asyncio.timeout(self._options.idle_s):
                await connection.send(packing.pack(reply))
            previous_ms = (time.perf_counter() - begin) * 1e3

    async def _refuse(self, connection: Any, error: Exception) -> None:
        if not isinstance(error, DoorError):
            logging.getLogger(__name__).error("the handler failed", exc_info=error)
            error = DoorError("internal", "The server failed; its log says more.")
        await connection.send(f"{error.code}: {error}")
        await connection.close(INTERNAL_ERROR, error.code)


def _peer(connection: Any) -> str:
    peer = connection.remote_address
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) and len(peer) >= 2 else "local"

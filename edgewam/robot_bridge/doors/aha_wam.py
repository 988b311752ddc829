"""The `aha_wam` door: the TCP protocol of AHA-WAM's released deploy server, so that its robot clients need no change.

Frames of pickle: it must be asked for by name and with `allow_pickle`, although nothing is ever unpickled here
(`aha_wam_wire/pickle_reader.py`).  Synchronous flow: reset, infer.  Asynchronous flow: image on one connection,
action_request on another.  Every request gets exactly one reply, on its own connection and in order, so that none can be taken
for another's; a context that is too old is an error reply.  Source: facts/aha_wam.md section 5.2.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.doors.aha_wam_wire import frames, messages, pickle_reader, pickle_writer, seats
from edgewam.robot_bridge.doors.aha_wam_wire.messages import Request
from edgewam.robot_bridge.doors.aha_wam_wire.seats import Peer, Seats
from edgewam.robot_bridge.serving.access import Address, is_token
from edgewam.robot_bridge.serving.connections import Connection, Connections
from edgewam.robot_bridge.serving.door import DoorOptions, check_options, is_on
from edgewam.robot_bridge.serving.handler import Answer, DoorError, Handler

DEFAULT_PORT = 10_000
FIRST_CONTEXT_S = 5.0  # upstream's own patience for the first planner refresh of an episode
RETRY_S = 0.02  # a fiftieth of a second: well below a refresh, and a fifth of the requests that a client may make
_LOG = logging.getLogger(__name__)
_OPTIONS = ("allow_pickle", "resize_images", "max_return_actions")


@dataclass(frozen=True)
class Settings:
    """resize_images: bring images of any size to the policy's, as upstream does; else another size is refused.

    max_return_actions: at most so many rows in a reply, 0 for all.
    """

    resize_images: bool = False
    max_return_actions: int = 0


def settings_of(extra: Mapping[str, str]) -> Settings:
    """The door's own options; EdgewamError for an unknown one, or without `allow_pickle`."""
    check_options("aha_wam", extra, _OPTIONS)
    if not is_on(extra, "allow_pickle"):
        raise EdgewamError(
            "The door aha_wam speaks frames of pickle. They are read as plain data and never executed, but the protocol has no "
            "authentication. If your robot computer needs it, start it with --option allow_pickle=true; else use the door openpi."
        )
    rows = extra.get("max_return_actions", "0")
    if not rows.isdecimal():
        raise EdgewamError(f"max_return_actions must be a number of rows, 0 for all, got {rows!r}.")
    return Settings(is_on(extra, "resize_images"), int(rows))


def serve(handler: Handler, address: Address, options: DoorOptions) -> None:
    """Answer upstream's clients until `options.quit` is set.

    Raises:
        EdgewamError: the address cannot be had, or the options do not allow this door.
    """
    _Door(handler, options, settings_of(options.extra)).connections.serve(address)


class _Door:
    """What all connections share."""

    def __init__(self, handler: Handler, options: DoorOptions, settings: Settings) -> None:
        self._handler, self._options, self._settings = handler, options, settings
        self._cameras = handler.metadata["cameras"]
        self._control_hz = float(handler.metadata["control_hz"])
        self._seats = Seats(handler.release)
        self._steps = count(1)
        self.connections = Connections(options, self._converse)

    def _converse(self, connection: Connection) -> None:
        """One client's requests in order, until it leaves, falls silent or sends what is no message."""
        try:
            self._exchange(connection)
        finally:
            self._seats.leave(connection.host, connection.number)

    def _exchange(self, connection: Connection) -> None:
        plug, speaker, wait_s = connection.plug, _Speaker(connection), self._options.open_s
        while not self._options.quit.is_set():
            try:
                frame = frames.receive(plug, self._options.max_frame_bytes, wait_s)
                if frame is None:
                    return
                message = pickle_reader.read(frame)
                del frame
                if not speaker.is_known:
                    self._introduce(speaker, message)
            except DoorError as error:  # the bytes cannot be trusted from here on
                frames.send(plug, pickle_writer.write(messages.error_reply(error, is_fatal=True)))
                connection.part()
                return
            frames.send(plug, pickle_writer.write(self._reply(speaker, message)))
            wait_s = self._options.idle_s

    def _introduce(self, speaker: _Speaker, message: Any) -> None:
        token = message.get("token") if isinstance(message, dict) else None
        if not is_token(token if isinstance(token, str) else None, self._options.token):
            raise DoorError("unauthorized", "The first message of a connection must hold the right 'token'.")
        speaker.is_known = True
        self.connections.introduce(speaker.connection)

    def _reply(self, speaker: _Speaker, message: Any) -> dict[str, Any]:
        kind = messages.kind_of(message)
        about: dict[str, Any] = {}
        if kind == "infer":
            about["server_inference_step"] = next(self._steps)
        if kind == "action_request":
            about["type"] = "action_error"
        if (request_id := messages.request_id_of(message)) is not None:
            about["request_id"] = request_id
        try:
            request = messages.request_of(message, self._cameras, self._settings.resize_images)
            return {**about, **self._answer(speaker, request)}
        except DoorError as error:
            return {**about, **messages.error_reply(error)}
        except Exception:  # a mistake of ours: it must not end the door, and its details are not the client's business
            _LOG.exception("request failed")
            return {**about, **messages.error_reply(DoorError("internal", "The server failed at this. See its log."))}

    def _answer(self, speaker: _Speaker, request: Request) -> dict[str, Any]:
        if request.kind == "config":  # upstream acknowledges it and changes nothing
            return {"ok": True, "type": "config_ack"}
        for seat in seats.SEATS_OF[request.kind]:
            peer = self._seats.take(speaker.connection.host, seat, speaker.connection.number)
        if request.kind == "image":
            return {"ok": True, "type": "image_ack", "queued": bool(self._handler.plan(peer.client, request.look)["queued"])}
        if request.kind == "reset" or (request.kind == "infer" and not speaker.has_begun):
            # upstream's synchronous server begins an episode with every connection
            self._handler.reset(peer.client, request.look.prompt)
            peer.has_context = False
        speaker.has_begun = True
        if request.kind == "reset":
            return {"ok": True, "type": "reset_ack"}
        begin_s = time.perf_counter()
        answer = self._handler.infer(peer.client, request.look) if request.kind == "infer" else self._act(peer, request)
        latency_ms = (time.perf_counter() - begin_s) * 1000.0
        reply = messages.chunk_reply(answer, latency_ms, self._settings.max_return_actions)
        return reply if request.kind == "infer" else {**reply, **messages.context_fields(answer, self._control_hz)}

    def _act(self, peer: Peer, request: Request) -> Answer:
        """An action chunk; right after a reset, once the first refresh is there."""
        end_s = time.monotonic() + FIRST_CONTEXT_S
        while True:
            try:
                answer = self._handler.act(peer.client, request.look)
            except DoorError as error:
                if error.code != "no_plan" or peer.has_context or time.monotonic() >= end_s or self._options.quit.is_set():
                    raise
            else:
                peer.has_context = True
                return answer
            time.sleep(RETRY_S)


@dataclass
class _Speaker:
    """One connection, whether it showed the token and whether it has begun an episode."""

    connection: Connection
    is_known: bool = False
    has_begun: bool = False

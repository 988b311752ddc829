"""The server's end of a WebSocket on a blocking socket: whole messages in and out, everything within a time.

The protocol is `ServerProtocol` of the package websockets, which does no input or output of its own.  One thread reads, thinks
and writes, so an answer leaves without waking another one.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

from edgewam.core.errors import require
from edgewam.robot_bridge.serving.connections import Connection

PING_S = 20.0  # a peer that is silent for so long is asked for a sign of life, and gone after as long again
SEND_S = 2.0  # a peer that does not take what we send for so long is gone: it may flood us with pings and read no echo
PIECE = 1 << 18  # bytes of one read; three 128x160 images are 184 kB
SWITCHING_PROTOCOLS, GOING_AWAY = 101, 1001
_LOG = logging.getLogger("edgewam.doors.websocket")  # what strangers send is theirs to see, not a traceback of ours
_LOG.addHandler(logging.NullHandler())
_LOG.propagate = False


class WebSocket:
    """One connection.  OSError from any call: it broke, or did not take what was sent."""

    def __init__(self, connection: Connection, max_size: int) -> None:
        """max_size: bytes of a message; a longer one ends the conversation by its announced length."""
        self._connection, self._plug = connection, connection.plug
        server, frames = require("websockets.server", extra="serve"), require("websockets.frames", extra="serve")
        # requests with an Origin come from a web page, and are refused
        self._protocol = server.ServerProtocol(origins=[None], max_size=max_size, logger=_LOG)
        self._opcodes = frames.Opcode
        self._events: deque[Any] = deque()
        self._fragments: bytearray | None = None
        self._is_text = self._is_asked = False

    @property
    def protocol(self) -> Any:
        """The `ServerProtocol`, whose `accept` and `reject` make the answer to a request."""
        return self._protocol

    def request(self, within_s: float) -> Any | None:
        """The HTTP request that opens the connection; None when none comes in time."""
        end_s = time.monotonic() + within_s
        while not self._events:
            if not self._read(end_s):
                return None
        return self._events.popleft()

    def respond(self, response: Any) -> bool:
        """Send the answer to the request; whether it opens a WebSocket."""
        self._protocol.send_response(response)
        self._flush()
        return bool(response.status_code == SWITCHING_PROTOCOLS)

    def receive(self, within_s: float) -> bytes | str | None:
        """The next message; None when the peer has left, broke the protocol or sent no whole message in time."""
        end_s = time.monotonic() + within_s
        while True:
            while self._events:
                if (message := self._message(self._events.popleft())) is not None:
                    return message
            if not self._read(end_s):
                return None

    def send(self, message: bytes | str) -> None:
        """One message."""
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        self._flush()

    def close(self, code: int = GOING_AWAY, reason: str = "") -> None:
        """Say goodbye when the peer has not, and wait shortly for it to read that."""
        if self._protocol.state.name == "OPEN":
            self._protocol.send_close(code, reason)
            self._flush()
        self._connection.part()

    def _read(self, end_s: float) -> bool:
        """Take in what has come; False when nothing more will, or the time is over."""
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            return False
        self._plug.settimeout(min(left_s, PING_S))
        try:
            data = self._plug.recv(PIECE)
        except TimeoutError:
            if self._is_asked:
                return False
            if self._protocol.state.name == "OPEN":
                self._protocol.send_ping(b"")
                self._is_asked = True
            return self._flush()
        self._is_asked = False
        if not data:
            return False
        self._protocol.receive_data(data)
        self._events.extend(self._protocol.events_received())
        return self._flush()

    def _message(self, frame: Any) -> bytes | str | None:
        """The message that this frame completes."""
        opcodes = self._opcodes
        data: bytes
        if frame.opcode in (opcodes.TEXT, opcodes.BINARY):
            self._is_text, data = frame.opcode is opcodes.TEXT, frame.data
            if not frame.fin:
                self._fragments = bytearray(data)
                return None
        elif frame.opcode is opcodes.CONT and self._fragments is not None:
            self._fragments += frame.data
            if not frame.fin:
                return None
            data, self._fragments = bytes(self._fragments), None
        else:
            return None
        return data.decode(errors="replace") if self._is_text else data

    def _flush(self) -> bool:
        """Send what the protocol has to say; False when that was its last word."""
        pieces = self._protocol.data_to_send()
        if data := b"".join(pieces):
            self._plug.settimeout(SEND_S)
            self._plug.sendall(data)
        return all(pieces)  # it marks the end by an empty piece

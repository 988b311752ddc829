"""Our own client of the openpi door: `infer`, `reset`, `stop` over one connection.  NumPy, websockets and msgpack; no torch.

It connects when it is first used, and again after an error: the door closes a connection that it has refused something on.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import EdgewamError, require
from edgewam.robot_bridge.serving import access, packing
from edgewam.robot_bridge.serving.access import Address
from edgewam.robot_bridge.serving.handler import Answer, DoorError

URI = "ws://edgewam/"  # only the path counts: the socket is connected already
MAX_PROMPTS = 4096  # the longest list in the metadata: the instructions that a bundle knows
MAX_ANSWER_BYTES = 1 << 20  # a chunk is 4 kB; a server that sends more is not ours


class EdgewamClient:
    """One client; not for several threads at once.  Use it as a context manager, or `close` it."""

    def __init__(
        self,
        host: str = access.LOOPBACK,
        port: int = 8000,
        *,
        path: Path | None = None,
        token: str | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        """A server at host and port, or at the Unix socket `path`.  timeout_s: for connecting and for every answer."""
        self._address, self._token, self._timeout_s = Address(host, port, path), token, timeout_s
        self._exit = contextlib.ExitStack()
        self._connection: Any = None
        self._metadata: Mapping[str, Any] = {}

    def __enter__(self) -> EdgewamClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def is_connected(self) -> bool:
        """Whether the next call goes over the connection that the last one used."""
        return self._connection is not None

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the server says of itself; see `serving.handler.Handler`.  Connects when needed."""
        self._connect()
        return self._metadata

    def infer(
        self,
        images: Mapping[str, npt.NDArray[np.uint8]],
        state: npt.NDArray[np.float32],
        prompt: str | None = None,
        tick: int | None = None,
    ) -> Answer:
        """Actions for what the robot sees: images uint8 [H, W, 3] by camera, state [D], tick of the episode (None: elapsed time).

        Raises:
            DoorError: the server refused; `code` says why.
            EdgewamError: no connection, or no answer in time.
        """
        request: dict[str, Any] = {"images": dict(images), "state": state, "prompt": prompt, "tick": tick}
        reply = self._ask({key: value for key, value in request.items() if value is not None})
        actions, timing = reply.get("actions"), reply.get("server_timing", {})
        # servers of openpi send neither ticks nor contexts
        numbers = reply.get("tick", tick or 0), reply.get("context_number", -1), reply.get("context_age_ticks", 0)
        is_plain = isinstance(timing, dict) and all(type(number) is int for number in numbers)
        if not isinstance(actions, np.ndarray) or actions.dtype != np.float32 or actions.ndim != 2 or not is_plain:
            raise EdgewamError(f"The server at {self._address} sent no action chunk. Is it `edgewam serve --door openpi`?")
        return Answer(actions, numbers[0], timing, *numbers[1:])

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Begin an episode; errors as `infer`."""
        request: dict[str, Any] = {"command": "reset", "prompt": prompt, "seed": seed}
        self._ask({key: value for key, value in request.items() if value is not None})

    def stop(self) -> None:
        """Latch a stop: nobody gets actions until somebody at the server's machine clears it."""
        self._ask({"command": "stop"})

    def close(self) -> None:
        """Leave; safe to call twice, and the next call connects again."""
        self._connection = None
        self._exit.close()

    def _connect(self) -> None:
        if self._connection is not None:
            return
        websockets, client = require("websockets", extra="serve"), require("websockets.sync.client", extra="serve")
        headers = {"Authorization": f"Api-Key {self._token}"} if self._token else None
        try:
            plug = self._open_socket()
            self._exit.callback(plug.close)
            options: dict[str, Any] = {
                "sock": plug, "compression": None, "max_size": MAX_ANSWER_BYTES, "additional_headers": headers,
                "open_timeout": self._timeout_s, "close_timeout": 1.0,
            }  # fmt: skip
            is_unix = self._address.path is not None
            opened = client.unix_connect(None, URI, **options) if is_unix else client.connect(URI, **options)
            connection = self._exit.enter_context(opened)
            self._metadata = packing.unpack(connection.recv(self._timeout_s), MAX_PROMPTS)
            self._connection = connection
        except websockets.exceptions.InvalidStatus as error:
            self.close()
            if error.response.status_code == 401:
                raise DoorError("unauthorized", f"The server at {self._address} wants another token.") from error
            raise EdgewamError(f"No policy server at {self._address}: {error}.") from error
        except (OSError, websockets.exceptions.WebSocketException, EOFError, DoorError) as error:
            self.close()
            raise EdgewamError(f"No policy server at {self._address}: {error}. Start one with: edgewam serve") from error

    def _open_socket(self) -> socket.socket:
        """A connected socket: made here, so that no proxy of the environment comes between a robot and its policy."""
        if self._address.path is None:
            plug = socket.create_connection((self._address.host, self._address.port), self._timeout_s)
        else:
            plug = socket.socket(socket.AF_UNIX)
            try:
                plug.connect(str(self._address.path))
            except OSError:
                plug.close()
                raise
        plug.settimeout(None)  # from here on `recv` has its own time-outs
        return plug

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._connect()
        websockets = require("websockets", extra="serve")
        try:
            self._connection.send(packing.pack(request))
            message = self._connection.recv(self._timeout_s)
            reply = packing.unpack(message) if isinstance(message, bytes) else message
        except TimeoutError as error:
            self.close()  # a late answer must not answer the next question
            raise EdgewamError(f"The server at {self._address} did not answer within {self._timeout_s:g} s.") from error
        except (OSError, websockets.exceptions.WebSocketException) as error:
            self.close()
            raise EdgewamError(f"The server at {self._address} closed the connection: {error}.") from error
        if isinstance(reply, dict):
            return reply
        self.close()
        code, _, text = str(reply).partition(": ")
        raise DoorError(code, text)

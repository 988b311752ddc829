"""The engine process of a server as its door holds it: started with two sockets and shared memory, asked, and ended.

One process and one message at a time; deadlines, restarts and threads belong to `engine_link.py`.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.processes.spawn import child_environment
from edgewam.robot_bridge.serving.engine_wire import MAX_MESSAGE, Blob, decode, encode

MODULE = "edgewam.robot_bridge.serving.engine_child"
END_S = 2.0  # an engine that does not leave by itself is killed


class EngineHandle:
    """One engine process.  `calls`, `plans`: our ends of its sockets.  `owed`: the number of the newest call."""

    def __init__(self, fds: list[int]) -> None:
        self.calls, calls = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.plans, plans = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.owed_since_s: float | None = None  # when the oldest call without a reply was sent
        self.owed = 0  # its number
        with calls, plans:
            ends = [calls.fileno(), plans.fileno()]
            self.popen = subprocess.Popen(
                [sys.executable, "-m", MODULE, *map(str, ends)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what libraries print is for the people at the server
                pass_fds=(*ends, *fds),
                env=child_environment({}),
                start_new_session=True,  # Ctrl-C is for the door, who ends the engine in order
            )

    def receive(self, channel: socket.socket, timeout_s: float) -> tuple[dict[str, Any], Blob | None]:
        """The next message.  TimeoutError, or EOFError when the engine is gone."""
        if timeout_s <= 0:
            raise TimeoutError
        try:
            channel.settimeout(timeout_s)
            message = channel.recv(MAX_MESSAGE)
        except TimeoutError:
            raise
        except OSError as error:  # it has died, or `end` has closed the socket
            raise EOFError from error
        if not message:
            raise EOFError
        return decode(message)

    def reply(self, end_s: float) -> tuple[dict[str, Any], Blob | None]:
        """The reply that is owed, until the monotonic time `end_s`; what belongs to older calls is thrown away."""
        while True:
            reply, actions = self.receive(self.calls, end_s - time.monotonic())
            if reply["number"] == self.owed:
                self.owed_since_s = None
                return reply, actions

    def hello(self, config: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Tell it what to be; what it says once it has tested itself and answered once: the fields of `EngineFacts`.

        Raises:
            EdgewamError: why it could not; it is then ended.
        """
        try:
            self.calls.send(encode(config))
            found, _ = self.receive(self.calls, timeout_s)
        except TimeoutError:
            found = {"error": f"The engine was not ready within {timeout_s:g} s."}
        except (EOFError, OSError):
            self.end(END_S)
            found = {"error": f"The engine process ended while it started (exit code {self.popen.returncode}); see above."}
        if "error" in found:
            self.end(0.0)
            raise EdgewamError(found["error"])
        return found

    def end(self, timeout_s: float) -> None:
        """Close the sockets, which it takes as the order to leave; kill it if it does not."""
        for channel in (self.calls, self.plans):
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for it
        try:
            self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.calls.close()
        self.plans.close()

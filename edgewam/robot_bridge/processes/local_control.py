"""Who may let the arm move: somebody who is logged in at this machine, over a Unix-domain socket of the run's supervisor.

One JSON line per request, {"verb": ...}, and one JSON line per answer.  The directory belongs to the user alone and the peer's
user id is checked, so nothing here can be reached over a network; a network may only ask for a stop (`wires.requests`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgewam.core.errors import EdgewamError

VERBS = ("status", "arm", "disarm", "stop", "reset", "estop")
MAX_REQUEST = 4096  # bytes of one request line
_MAX_CLIENTS = 8
_IDLE_S = 2.0  # a client that says nothing for so long is sent away
_ANSWER_TIMEOUT_S = 5.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # a socket's path may have 107 characters
_PEER = struct.Struct("3i")  # pid, uid, gid

Answer = Callable[[str], dict[str, Any]]


def directory() -> Path:
    """Where the sockets are: a directory of mode 0700 that belongs to this user.

    Raises:
        EdgewamError: somebody else made it, or others may write to it.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(base) / "edgewam" if base and os.path.isdir(base) else Path(tempfile.gettempdir()) / f"edgewam-{os.geteuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise EdgewamError(f"'{path}' must be a directory of mode 0700 that belongs to you. Remove it and try again.")
    return path


def _path(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise EdgewamError(
            f"A run's name has up to 64 letters, digits, '_', '.', '-' and starts with one of the first; got '{name}'."
        )
    return directory() / f"{name}.sock"


def _connect(path: Path) -> socket.socket | None:
    """A connection to the run behind a socket; None when there is none, and then its file is removed.

    Raises:
        EdgewamError: the run is there and takes no more callers.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(_ANSWER_TIMEOUT_S)
    try:
        client.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        client.close()
        path.unlink(missing_ok=True)
        return None
    except OSError as error:  # too many wait for it already
        client.close()
        raise EdgewamError(_silent(path.stem)) from error
    return client


def _silent(name: str) -> str:
    return f"The run '{name}' gives no answer: its supervisor is stopped, or too busy. Stop the arm another way."


def runs() -> list[str]:
    """Names of the runs that can be controlled now; what dead runs left behind is removed."""
    alive = []
    for path in sorted(directory().glob("*.sock")):
        try:
            client = _connect(path)
        except EdgewamError:  # it is there, and too busy
            alive.append(path.stem)
            continue
        if client is not None:
            client.close()
            alive.append(path.stem)
    return alive


def ask(verb: str, name: str | None = None) -> dict[str, Any]:
    """Send a verb to a run and return its answer; without a name, to the only run there is.

    Raises:
        EdgewamError: no such run or verb, several runs and no name, or no answer.
    """
    if verb not in VERBS:
        raise EdgewamError(f"Unknown verb '{verb}'. Available: {', '.join(VERBS)}.")
    there = runs() if name is None else [name]
    if len(there) != 1:
        raise EdgewamError(
            f"Several runs: {', '.join(there)}. Choose one with --run."
            if there
            else "Nothing runs here. Start it with: edgewam run"
        )
    client = _connect(_path(there[0]))
    if client is None:
        raise EdgewamError(f"No run '{there[0]}'. Running: {', '.join(runs()) or 'none'}.")
    line = b""
    with client, contextlib.suppress(OSError):  # it was sent away, or waited in vain
        client.sendall(json.dumps({"verb": verb}).encode() + b"\n")
        with client.makefile("rb") as stream:
            line = stream.readline()
    if not line.endswith(b"\n"):
        raise EdgewamError(_silent(there[0]))
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise EdgewamError(str(answer["error"]))
    return answer


class ControlServer:
    """The supervisor's end.  `poll` answers what has come in and never waits."""

    def __init__(self, name: str) -> None:
        """Listen as run `name`.

        Raises:
            EdgewamError: a run of that name is alive.
        """
        runs()  # clears away what dead runs left
        self.name, self._path = name, _path(name)
        if self._path.exists():
            raise EdgewamError(
                f"A run named '{name}' is already there. Stop it (edgewam control stop --run {name}), then end it."
            )
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # it gets its name when it listens: whoever looks before would take it for a dead one
        unnamed = self._path.with_name(f".{os.getpid()}")
        unnamed.unlink(missing_ok=True)
        try:
            self._socket.bind(str(unnamed))
            self._socket.listen(_MAX_CLIENTS)
            os.link(unnamed, self._path)
        except OSError as error:
            self._socket.close()
            raise EdgewamError(
                f"Cannot make the control socket '{self._path}' ({error}). Choose another name or directory."
            ) from error
        finally:
            unnamed.unlink(missing_ok=True)
        self._clients: list[_Client] = []

    def poll(self, answer: Answer) -> None:
        """Take in new clients and answer whole requests with `answer(verb)`."""
        with contextlib.suppress(OSError):  # nobody else waits, or no more files can be opened, and then what was is served
            while True:
                connection, _ = self._socket.accept()
                if len(self._clients) < _MAX_CLIENTS and _is_allowed(connection):
                    self._clients.append(_Client(connection))
                else:
                    connection.close()
        self._clients = [client for client in self._clients if client.serve(answer)]

    def close(self) -> None:
        """Send everyone away and remove the socket; safe to call twice."""
        for client in self._clients:
            client.close()
        self._clients = []
        if self._socket.fileno() >= 0:
            self._socket.close()
            self._path.unlink(missing_ok=True)


def _is_allowed(connection: socket.socket) -> bool:
    """The same user, or root."""
    _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return uid in (os.geteuid(), 0)


class _Client:
    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._received = b""
        self._heard_s = time.monotonic()

    def serve(self, answer: Answer) -> bool:
        """Answer what is there; False when the connection is over."""
        try:
            data = self._connection.recv(MAX_REQUEST)
        except BlockingIOError:
            return time.monotonic() - self._heard_s <= _IDLE_S or self.close()
        except OSError:
            return self.close()
        self._received, self._heard_s = self._received + data, time.monotonic()
        try:
            while b"\n" in self._received:
                line, _, self._received = self._received.partition(b"\n")
                # an answer is small: it fits the socket's buffer, or the client does not read and is sent away
                self._connection.sendall(json.dumps(_respond(line, answer)).encode() + b"\n")
        except OSError:
            return self.close()
        return (bool(data) and len(self._received) <= MAX_REQUEST) or self.close()

    def close(self) -> bool:
        self._connection.close()
        return False


def _respond(line: bytes, answer: Answer) -> dict[str, Any]:
    try:
        request = json.loads(line) if len(line) <= MAX_REQUEST else None
        verb = request.get("verb") if isinstance(request, dict) else None
    except (ValueError, RecursionError):
        verb = None
    if verb not in VERBS:
        return {"error": f"A request is one JSON line such as {json.dumps({'verb': 'status'})}. Verbs: {', '.join(VERBS)}."}
    return answer(verb)

"""Where a door listens and who may come in: loopback or a Unix socket by default, anything else only with a token.

A token is a shared secret in a private file; it is compared in constant time.  It travels in clear text: over a network that
others use, put a TLS proxy in front (facts/robot.md section 8).
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from edgewam.core.errors import EdgewamError

LOOPBACK = "127.0.0.1"
MIN_TOKEN_CHARACTERS = 32  # 32 hexadecimal digits are 128 bits
MIN_DISTINCT = 8  # 32 random hexadecimal digits have fewer distinct ones once in 50 000 times; "aaaa..." always has
MAKE_TOKEN = "(umask 077; openssl rand -hex 32 > token)"
BACKLOG = 16  # connections that the kernel keeps waiting; a door bounds those that it has accepted


@dataclass(frozen=True)
class Address:
    """A TCP host (an IP address or localhost) and port, port 0 for any free one; or the path of a Unix socket."""

    host: str = LOOPBACK
    port: int = 0
    path: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can reach it."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_token(path: Path) -> str:
    """The secret of a token file: its only line.

    Raises:
        EdgewamError: the file is missing, others can read it, or it holds something that can be guessed.
    """
    try:
        with open(path, encoding="ascii") as file:
            mode = os.fstat(file.fileno()).st_mode  # of what is read, whatever the name points to a moment later
            text = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise EdgewamError(f"Cannot read the token file '{path}': {error}. Make one with: {MAKE_TOKEN}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise EdgewamError(f"Others can read the token file '{path}'. Close it with: chmod 600 {path}")
    if len(text) < MIN_TOKEN_CHARACTERS or len(set(text)) < MIN_DISTINCT or not text.isprintable() or " " in text:
        raise EdgewamError(
            f"The token in '{path}' can be guessed: it must be one line of at least {MIN_TOKEN_CHARACTERS} random characters. "
            f"Make one with: {MAKE_TOKEN}"
        )
    return text


def check_exposure(address: Address, token: str | None) -> None:
    """Refuse an address that other machines can reach when no token protects it.

    Raises:
        EdgewamError: says what to give.
    """
    if address.is_local or token is not None:
        return
    raise EdgewamError(
        f"'{address.host}' can be reached from other machines, and whoever reaches it could move the robot. "
        f"Give --token-file FILE (make one with: {MAKE_TOKEN}), or leave --bind out to listen on {LOOPBACK} only."
    )


def exposure(address: Address, token: str | None) -> str:
    """One line for people: where the door listens and who may connect."""
    if address.path is not None:
        who = "only this user can connect"
    elif address.is_local:
        who = "only programs on this machine can connect"
    else:
        who = "WARNING: any machine that reaches this address can connect; the token travels unencrypted"
    return f"listening on {address} ({who}; {'a token is required' if token else 'no token'})"


def is_token(given: str | bytes | None, token: str | None) -> bool:
    """Whether a client may come in: no token is asked for, or it gave the right one.  Constant time."""
    if token is None:
        return True
    if given is None:
        return False
    raw = given if isinstance(given, bytes) else given.encode("utf-8", "surrogateescape")
    return hmac.compare_digest(raw, token.encode())


def listen(address: Address, token: str | None = None) -> tuple[socket.socket, Address]:
    """A listening socket, and the address with the port that it got.  Only this user can open a Unix socket.

    Raises:
        EdgewamError: `check_exposure`, or the address is in use or does not exist here.
    """
    check_exposure(address, token)
    try:
        if address.path is not None:
            return _listen_unix(address.path), address
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        listener = socket.create_server((address.host, address.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise EdgewamError(
            f"Cannot listen on {address}: {error.strerror or error}. Choose another address or end what uses it."
        ) from error
    return listener, Address(address.host, listener.getsockname()[1])


def _listen_unix(path: Path) -> socket.socket:
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise OSError(98, "another server listens there")
        path.unlink()  # left behind by a server that was killed
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(BACKLOG)
    return listener

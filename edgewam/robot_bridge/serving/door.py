"""What every door module is given besides the handler: where to listen, whom to let in, how much to read, when to end.

A door is a module in `robot_bridge/doors/` that offers `serve(handler, address, options) -> None`: it listens, calls
`options.on_ready` with the address it got, and returns soon after `options.quit` is set.  A protocol with a usual port has a
`DEFAULT_PORT`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.serving.access import Address
from edgewam.robot_bridge.serving.checks import MAX_FRAME_BYTES

POLL_S = 0.1  # how often a door looks at `quit`
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class DoorOptions:
    """token: what a client must show, None for nobody asks.  max_connections: beyond it strangers are dropped.

    open_s: a client must have introduced itself by then.  idle_s: a connection without a whole request for so long is closed.
    extra: settings of one door, by its own documentation.
    """

    token: str | None = None
    max_frame_bytes: int = MAX_FRAME_BYTES
    max_connections: int = 16
    open_s: float = 5.0
    idle_s: float = 300.0
    quit: threading.Event = field(default_factory=threading.Event)
    on_ready: Callable[[Address], None] = lambda address: None
    extra: Mapping[str, str] = field(default_factory=dict)


def check_options(door: str, extra: Mapping[str, str], known: Sequence[str]) -> None:
    """Refuse settings that a door does not have; EdgewamError names those that it has."""
    if unknown := sorted(set(extra) - set(known)):
        raise EdgewamError(f"The door {door} has no option {', '.join(unknown)}. It has: {', '.join(known) or 'none'}.")


def is_on(extra: Mapping[str, str], name: str) -> bool:
    """Whether a switch among a door's settings is on; off by default.  EdgewamError for a word that says neither."""
    word = extra.get(name, "false").lower()
    if word not in _WORDS:
        raise EdgewamError(f"--option {name} must be true or false, got {extra[name]!r}.")
    return _WORDS[word]

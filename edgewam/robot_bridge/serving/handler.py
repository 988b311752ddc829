"""What a door calls, whatever protocol it speaks: one policy, one controller at a time, answers or error codes.

A door turns bytes of its protocol into these calls and answers back; it never sees a policy, and a handler never sees a socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import EdgewamError

Floats = npt.NDArray[np.float32]


class DoorError(EdgewamError):
    """A refusal that a client may see: a code for programs and a sentence for people; never a traceback.

    Codes: bad_request, too_large, unauthorized, not_controller, rate_limited, unknown_prompt, stopped, engine_restarting,
    deadline, no_plan, internal.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Look:
    """One observation as a client sent it, checked.

    images: camera name -> uint8 [H, W, 3] RGB of the shapes in the handler's metadata; empty: keep the newest ones.
    state: float32 [D], or None to keep.  prompt: instruction, or None for the one in force.  tick: control tick of the
    episode by the client's own count, or None: then elapsed time counts.
    """

    images: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    state: Floats | None = None
    prompt: str | None = None
    tick: int | None = None


@dataclass(frozen=True)
class Answer:
    """actions: float32 [rows, D] absolute targets, row 0 for `tick`.  timing: milliseconds by part (infer_ms, wait_ms, ...).

    context_number, context_age_ticks: the planner refresh behind the actions (-1 when the policy has none).
    """

    actions: Floats
    tick: int
    timing: Mapping[str, float]
    context_number: int = -1
    context_age_ticks: int = 0


class Handler(Protocol):
    """Blocking calls for one client at a time; a door with many connections calls from one thread each.

    `client` is any string that is unique to a connection.  The first client that asks for actions becomes the controller and
    stays it until it releases, disconnects or idles; others get `not_controller` for everything but `metadata` and `stop`.
    """

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Plain data: name, digest, state_dim, action_dim, horizon, control_hz, cameras {name: [H, W, 3]}, prompts."""

    def infer(self, client: str, look: Look) -> Answer:
        """Refresh when due, then act; DoorError with a code otherwise."""

    def plan(self, client: str, look: Look) -> Mapping[str, Any]:
        """Refresh from these images, replacing a refresh that still waits; returns {"queued": bool, "context_number": int}."""

    def act(self, client: str, look: Look) -> Answer:
        """Act with the newest context; DoorError `no_plan` without one or beyond its horizon."""

    def reset(self, client: str, prompt: str | None, seed: int | None = None) -> None:
        """Begin an episode."""

    def stop(self, client: str) -> None:
        """Latch: from now on every client gets `stopped` until somebody resets locally.  Any client may call this."""

    def release(self, client: str) -> None:
        """The connection is gone; safe for clients that hold nothing."""

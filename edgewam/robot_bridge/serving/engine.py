"""What a session needs of the thing that computes: a policy behind calls that return or refuse within a deadline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from edgewam.core.records import Observation
from edgewam.robot_bridge.serving.handler import Answer


@dataclass(frozen=True)
class EngineFacts:
    """What the policy says of itself.  horizon: rows of a chunk.  grid_ticks: chunks must start on a multiple of so many ticks
    after a refresh (1: anywhere; weights trained without offsets: their chunk length)."""

    horizon: int
    action_dim: int
    grid_ticks: int = 1


class Engine(Protocol):
    """Calls raise DoorError: `engine_restarting`, `deadline`, `internal`, or what the policy refused."""

    @property
    def facts(self) -> EngineFacts:
        """Sizes of what it answers."""

    @property
    def generation(self) -> int:
        """Grows with every restart: what the policy knew of the episode is lost, and `reset` is due."""

    def reset(self, prompt: str, seed: int) -> None:
        """Begin an episode; `unknown_prompt` when the policy does not know the instruction."""

    def infer(self, observation: Observation) -> Answer:
        """Refresh when due, then act; `bad_request` when the policy refuses."""

    def act(self, observation: Observation) -> Answer:
        """Act with the newest context; `no_plan` when the policy has none for this tick."""

    def plan(self, observation: Observation) -> Mapping[str, Any]:
        """Queue a refresh, replacing one that still waits, and return at once; see `Handler.plan`."""

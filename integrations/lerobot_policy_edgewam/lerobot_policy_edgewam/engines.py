"""Where the policy's answers come from: a bundle in this process, or one that `edgewam serve` has on this or another machine.

Either is opened at the first observation, never at import: LeRobot builds policies also to look at their configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lerobot_policy_edgewam.configuration_edgewam import EdgewamConfig


class Engine:
    """A policy of edgewam's (`edgewam.robot_bridge.policy.Policy`), one episode at a time."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    @property
    def longest_prefix(self) -> int:
        """First rows of a chunk that may be given: 0 for weights that were not trained so, and for a server's."""
        from edgewam.robot_bridge.policy import longest_prefix

        return longest_prefix(self._policy) if hasattr(self._policy, "prefix_trained") else 0

    def reset(self, prompt: str, seed: int) -> None:
        """Begin an episode; EdgewamError for a prompt that the bundle does not know."""
        self._policy.reset(prompt, seed)

    def infer(self, images: Mapping[str, Any], state: Any, tick: int, prefix: Any = None) -> Any:
        """Images uint8 [H, W, 3] by camera, state float32 [D], control tick of the episode -> actions float32 [rows, D].

        Row 0 belongs to `tick`; prefix float32 [k, D]: the first k rows, already decided.
        """
        from edgewam.core.records import Observation

        observation = Observation(images, state, tick)
        if prefix is None:
            return self._policy.infer(observation).actions
        if self._is_refresh_due(tick):
            self._policy.plan(observation)
        return self._policy.act(observation, prefix).actions

    def _is_refresh_due(self, tick: int) -> bool:
        """As in the policy's own `infer`: no context, an old one, one that does not reach, or one off whose grid the tick is."""
        policy = self._policy
        if policy.context_tick is None:
            return True
        age = tick - policy.context_tick
        is_off_grid = not policy.offset_trained and age % policy.chunk_size != 0
        return age >= policy.refresh_ticks or age + policy.chunk_size > policy.horizon or is_off_grid


def open_engine(config: EdgewamConfig) -> Engine:
    """The engine that the options name; ValueError when they name none or two."""
    if bool(config.bundle) == bool(config.server):
        raise ValueError("Give exactly one of --policy.bundle=DIRECTORY and --policy.server=HOST:PORT.")
    if config.bundle:
        from edgewam.runtime.factory import open_policy

        return Engine(open_policy(config.bundle, threads=config.threads))
    host, _, port = config.server.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--policy.server must be HOST:PORT, got '{config.server}'.")
    from edgewam.robot_bridge.remote import open_policy as open_remote

    return Engine(open_remote(host, int(port), token_file=config.token_file or None))

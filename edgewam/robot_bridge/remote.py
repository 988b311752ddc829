"""A policy that lives in another machine or process: `infer` over the wire.  A time-out is an error, and the robot holds."""

from __future__ import annotations

from pathlib import Path

from edgewam.core.errors import EdgewamError
from edgewam.core.records import ActionChunk, Observation
from edgewam.robot_bridge.client import EdgewamClient
from edgewam.robot_bridge.serving.access import LOOPBACK, read_token


class RemotePolicy:
    """See `robot_bridge.policy.Policy`.  The server decides when its planner refreshes, so `plan` has nothing to do."""

    def __init__(self, client: EdgewamClient) -> None:
        self._client = client
        self._episode: tuple[str, int] | None = None  # prompt and seed
        self._is_begun = False  # on the connection that is open now

    def reset(self, prompt: str, seed: int) -> None:
        """Begin an episode on the server."""
        self._episode, self._is_begun = (prompt, seed), False
        self._begin()

    def infer(self, observation: Observation) -> ActionChunk:
        """The server's answer; after a lost connection it begins the episode again, without what the policy remembered.

        Raises:
            EdgewamError: no connection, no answer in time, or a refusal; there are no actions then.
        """
        self._begin()
        answer = self._client.infer(observation.images, observation.state, tick=observation.tick)
        return ActionChunk(answer.actions, answer.tick, observation.tick, observation.t_capture_ns)

    def plan(self, observation: Observation) -> None:
        """Nothing: the server refreshes by itself."""

    def act(self, observation: Observation) -> ActionChunk:
        """See `infer`."""
        return self.infer(observation)

    def close(self) -> None:
        """Leave the server."""
        self._client.close()

    def _begin(self) -> None:
        if self._episode is None:
            raise EdgewamError("Call reset(prompt, seed) before the first observation.")
        if not self._is_begun or not self._client.is_connected:
            self._client.reset(*self._episode)
            self._is_begun = True


def open_policy(
    host: str = LOOPBACK,
    port: int = 8000,
    token_file: str | None = None,
    path: str | None = None,
    timeout_s: float = 1.0,
) -> RemotePolicy:
    """The policy behind `edgewam serve --door openpi`; a dotted factory for `edgewam run --remote`.

    path: its Unix socket, instead of host and port.  timeout_s: an answer that takes longer is an error.
    """
    token = None if token_file is None else read_token(Path(token_file))
    return RemotePolicy(EdgewamClient(host, port, path=None if path is None else Path(path), token=token, timeout_s=timeout_s))

"""How the engine's policy gets its context: from a planner process, in the background of its own device, or inside `infer`.

A refresh has a rate of its own, counted in ticks of the frames, and no chunk waits for one.  Not here: when chunks are due.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import EdgewamError
from edgewam.core.records import ActionChunk, Observation
from edgewam.robot_bridge.policy import Policy, SplitPolicy
from edgewam.robot_bridge.records.shm_record import SharedRecord, Value

NONE = -1
Rows = npt.NDArray[np.float32]


def interval(policy: SplitPolicy, wanted: int | None) -> int:
    """Policy ticks between refreshes: `wanted`, or the policy's own number.

    Raises:
        EdgewamError: what no horizon covers, or what leaves the grid of weights without offsets.
    """
    ticks = policy.refresh_ticks if wanted is None else wanted
    longest = max(policy.horizon - policy.chunk_size, policy.chunk_size)
    if not 1 <= ticks <= longest:
        raise EdgewamError(
            f"A refresh every {ticks} ticks is not possible: choose from 1 to {longest}, one chunk before the horizon."
        )
    if not policy.offset_trained and ticks % policy.chunk_size:
        raise EdgewamError(
            f"These weights were trained without offsets: choose refresh_ticks as a multiple of {policy.chunk_size}, not {ticks}."
        )
    return ticks


def is_due(policy: SplitPolicy, every: int, age: int) -> bool:
    """Whether a frame `age` policy ticks after the last refresh should begin one.

    Chunks of weights without offsets start on the grid of their context, so the next context begins on it too; beyond the
    horizon there is no grid left.
    """
    on_grid = policy.offset_trained or age % policy.chunk_size == 0
    return (age >= every and on_grid) or age + policy.chunk_size > policy.horizon


def infer_with_prefix(policy: SplitPolicy, observation: Observation, prefix: Rows | None) -> ActionChunk:
    """`infer` for a chunk whose first rows are decided: `plan` when a refresh is due, then `act`."""
    last = policy.context_tick
    age = observation.tick - (last or 0)
    is_off_grid = not policy.offset_trained and age % policy.chunk_size
    if last is None or is_off_grid or is_due(policy, policy.refresh_ticks, age):
        policy.plan(observation)
    return policy.act(observation, prefix)


class Refresh(Protocol):
    """One way of getting contexts.  `tick` and `number` are those of the context in use (-1: none, or the policy has none)."""

    name: str
    tick: int
    number: int

    @property
    def is_waiting(self) -> bool:
        """Whether the first context of this episode is still missing."""

    def reset(self, episode: int) -> None:
        """A new episode has begun (the policy was reset)."""

    def poll(self) -> bool:
        """Take in a context that is finished; whether there was one.  Never waits."""

    def offer(self, observation: Observation, tick: int) -> None:
        """A frame, at control tick `tick` since the epoch, from which a refresh may begin."""

    def act(self, observation: Observation, prefix: Rows | None) -> ActionChunk:
        """A chunk from the context in use."""


class Blocking:
    """A policy that refreshes inside `infer`, when and how it likes."""

    name, tick, number, is_waiting = "blocking", NONE, NONE, False

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def reset(self, episode: int) -> None:
        """Nothing to forget."""

    def poll(self) -> bool:
        """Nothing comes from elsewhere."""
        return False

    def offer(self, observation: Observation, tick: int) -> None:
        """Nothing begins on its own."""

    def act(self, observation: Observation, prefix: Rows | None) -> ActionChunk:
        """`infer`; real-time chunking was refused before, so there is no prefix."""
        return self._policy.infer(observation)


class InEngine:
    """Refreshes in the background of the engine's own device (on the processor: between two chunks)."""

    name = "engine"

    def __init__(self, policy: SplitPolicy, every: int, first_number: int) -> None:
        self._policy, self._every = policy, every
        self._next_number = first_number
        self.reset(NONE)

    @property
    def is_waiting(self) -> bool:
        """See `Refresh`."""
        return self.number == NONE

    def reset(self, episode: int) -> None:
        """See `Refresh`."""
        self.tick = self.number = NONE
        self._coming = NONE  # control tick of the refresh under way
        self._last: int | None = None  # policy tick of the newest one begun

    def offer(self, observation: Observation, tick: int) -> None:
        """See `Refresh`."""
        is_first = self._last is None
        if self._coming == NONE and (is_first or is_due(self._policy, self._every, observation.tick - (self._last or 0))):
            self._policy.start_plan(observation)
            self._coming, self._last = tick, observation.tick

    def poll(self) -> bool:
        """See `Refresh`."""
        if self._coming == NONE or not self._policy.poll_plan():
            return False
        self.tick, self.number = self._coming, self._next_number
        self._coming = NONE
        self._next_number += 1
        return True

    def act(self, observation: Observation, prefix: Rows | None) -> ActionChunk:
        """See `Refresh`."""
        return self._policy.act(observation, prefix)


class FromPlanner:
    """Contexts that a planner process publishes; a torn record is skipped, and the old context goes on."""

    name = "process"

    def __init__(self, policy: SplitPolicy, record: SharedRecord) -> None:
        self._policy, self._record, self._version = policy, record, 0
        self._held: Value | None = None  # of an episode that this engine has not begun yet
        self.reset(NONE)

    @property
    def is_waiting(self) -> bool:
        """See `Refresh`."""
        return self.number == NONE

    def reset(self, episode: int) -> None:
        """See `Refresh`."""
        self._episode = episode
        self.tick = self.number = NONE

    def poll(self) -> bool:
        """See `Refresh`."""
        newer = self._record.read(self._version)
        if newer is not None:
            self._version, self._held = newer
        value = self._held
        if value is None or int(value["episode"]) != self._episode:
            return False
        self._held = None
        self._policy.import_context(value["data"][: int(value["length"])].tobytes())
        self.tick, self.number = int(value["tick"]), int(value["number"])
        return True

    def offer(self, observation: Observation, tick: int) -> None:
        """The planner looks at frames itself."""

    def act(self, observation: Observation, prefix: Rows | None) -> ActionChunk:
        """See `Refresh`."""
        return self._policy.act(observation, prefix)


def to_record(record: SharedRecord, data: bytes, **fields: Any) -> Value:
    """A context record of exported bytes.

    Raises:
        EdgewamError: larger than the record.
    """
    value = record.blank()
    room = value["data"]
    if len(data) > len(room):
        raise EdgewamError(
            f"The planner's context has {len(data)} bytes and its record {len(room)}. Run with planner 'engine', or give the "
            f"run max_context_bytes={len(data)}."
        )
    for name, number in fields.items():
        value[name] = number
    value["length"] = len(data)
    room[: len(data)] = np.frombuffer(data, np.uint8)
    return value

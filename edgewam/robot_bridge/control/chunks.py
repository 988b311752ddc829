"""Taking chunks in: everything that can be wrong with one, checked before any of its rows may move a joint.

Nothing here trusts the engine process: a chunk is bytes of a fixed size with a claim of what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from edgewam.core.records import ActionChunk
from edgewam.robot_bridge.records.shm_record import SharedRecord, Value
from edgewam.robot_bridge.records.wires import MAX_ROWS

_TICK_SLACK = 2  # an age in ticks and the same age in ns are rounded at both ends


class Reject(IntEnum):
    """Why a chunk was refused."""

    NONE = 0
    SHAPE = 1  # not [1..64, D]
    DTYPE = 2  # not float32
    NOT_FINITE = 3
    REPLAYED = 4  # its number is not above the last one
    OTHER_EPISODE = 5  # computed for an episode that is over (or has not begun)
    FUTURE = 6  # starts, or was observed, after this tick
    EXPIRED = 7  # its last row is past
    STALE = 8  # its observation is too old
    JUMP = 9  # its first action is out of reach of the last command, while running
    OLD_CONTEXT = 10  # the planner context was too old when the chunk begins
    LIMITS = 11  # its first action is far outside of the joint range
    WORKSPACE = 12  # the robot's workspace function refuses its first action
    BAD_TIME = 13  # another row rate than the run's, or more given rows than rows
    BAD_PREFIX = 14  # schedule rtc, while running: more ticks went by than it had rows given


@dataclass(frozen=True)
class Rules:
    """What chunks are held to.  Ages: of the observation, and of the context (in ticks, None: no bound) when the chunk begins."""

    num_joints: int
    ticks_per_row: int
    max_age_ns: int
    max_age_ticks: int
    max_context_age_ticks: int | None
    needs_prefix: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Rules:
        """From lower, control_hz, ticks_per_row, max_observation_age_s, max_context_age_ticks, schedule."""
        age_s = float(config["max_observation_age_s"])
        context = config["max_context_age_ticks"]
        return cls(
            num_joints=len(config["lower"]),
            ticks_per_row=int(config["ticks_per_row"]),
            max_age_ns=round(age_s * 1e9),
            max_age_ticks=round(age_s * float(config["control_hz"])) + _TICK_SLACK,
            max_context_age_ticks=None if context is None else int(context),
            needs_prefix=config["schedule"] == "rtc",
        )


def to_record(record: SharedRecord, chunk: ActionChunk, number: int, episode: int, tick_offset: int, infer_ns: int) -> Value:
    """An engine's answer as a chunk record; `tick_offset` turns episode ticks into ticks since the epoch.

    Actions that do not fit the layout are left out: the claimed shape and dtype make the receiver refuse and count the chunk.
    One control tick per row, no context (-1) and no prefix: who has others fills them in.
    """
    value = record.blank()
    actions = np.asarray(chunk.actions)
    value["id"], value["episode"], value["infer_ns"] = number, episode, infer_ns
    value["start_tick"] = chunk.start_tick + tick_offset
    value["observation_tick"] = chunk.observation_tick + tick_offset
    value["t_capture_ns"] = chunk.t_capture_ns
    value["context_tick"], value["context_number"] = -1, -1
    value["ticks_per_row"] = 1
    shape = actions.shape if actions.ndim == 2 else (0, 0)
    value["rows"], value["columns"] = shape
    value["dtype"] = actions.dtype.str.encode()[:8]
    room = value["actions"]
    if actions.dtype == np.float32 and 0 < shape[0] <= room.shape[0] and shape[1] == room.shape[1]:
        room[: shape[0]] = actions
    return value


def check(value: Value, rules: Rules, *, tick: int, now_ns: int, episode: int, last_id: int) -> Reject:
    """The first thing wrong with what a chunk record claims at this tick, or NONE.  What it asks for: see `Intake`."""
    rows, every = int(value["rows"]), int(value["ticks_per_row"])
    if not 1 <= rows <= MAX_ROWS or int(value["columns"]) != rules.num_joints:
        return Reject.SHAPE
    if value["dtype"].item() != b"<f4":
        return Reject.DTYPE
    if not np.isfinite(value["actions"][:rows]).all():
        return Reject.NOT_FINITE
    if int(value["id"]) <= last_id:
        return Reject.REPLAYED
    if every != rules.ticks_per_row or not 0 <= int(value["prefix_rows"]) <= rows:
        return Reject.BAD_TIME
    if int(value["episode"]) != episode:
        return Reject.OTHER_EPISODE
    start, observed, captured_ns = int(value["start_tick"]), int(value["observation_tick"]), int(value["t_capture_ns"])
    if start > tick or observed > tick or captured_ns > now_ns:
        return Reject.FUTURE
    if start + (rows - 1) * every < tick:
        return Reject.EXPIRED
    if now_ns - captured_ns > rules.max_age_ns or tick - observed > rules.max_age_ticks:
        return Reject.STALE
    has_context = int(value["context_number"]) >= 0
    bound = rules.max_context_age_ticks
    if has_context and bound is not None and start - int(value["context_tick"]) > bound:
        return Reject.OLD_CONTEXT
    return Reject.NONE

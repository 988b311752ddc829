"""Taking chunks in: everything that can be wrong with one, checked before any of its rows may move a joint.

Nothing here trusts the engine process: a chunk is bytes of a fixed size with a claim of what they are.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from edgewam.core.records import ActionChunk
from edgewam.robot_bridge.shm_record import SharedRecord, Value
from edgewam.robot_bridge.wires import MAX_ROWS


class Reject(IntEnum):
    """Why a chunk was refused, in the order of the checks."""

    NONE = 0
    SHAPE = 1  # not [1..64, D]
    DTYPE = 2  # not float32
    NOT_FINITE = 3
    REPLAYED = 4  # its number is not above the last one
    OTHER_EPISODE = 5  # computed for an episode that is over (or has not begun)
    FUTURE = 6  # starts, or was observed, after this tick
    EXPIRED = 7  # its last row is past
    STALE = 8  # its observation is too old
    JUMP = 9  # its first action is out of reach of the last command


def to_record(record: SharedRecord, chunk: ActionChunk, number: int, episode: int, tick_offset: int, infer_ns: int) -> Value:
    """An engine's answer as a chunk record; `tick_offset` turns episode ticks into ticks since the epoch.

    Actions that do not fit the layout are left out: the claimed shape and dtype make the receiver refuse and count the chunk.
    """
    value = record.blank()
    actions = np.asarray(chunk.actions)
    value["id"], value["episode"], value["infer_ns"] = number, episode, infer_ns
    value["start_tick"] = chunk.start_tick + tick_offset
    value["observation_tick"] = chunk.observation_tick + tick_offset
    value["t_capture_ns"] = chunk.t_capture_ns
    value["ticks_per_row"] = 1
    shape = actions.shape if actions.ndim == 2 else (0, 0)
    value["rows"], value["columns"] = shape
    value["dtype"] = actions.dtype.str.encode()[:8]
    room = value["actions"]
    if actions.dtype == np.float32 and 0 < shape[0] <= room.shape[0] and shape[1] == room.shape[1]:
        room[: shape[0]] = actions
    return value


def check(value: Value, num_joints: int, *, tick: int, now_ns: int, episode: int, last_id: int, max_age_ns: int) -> Reject:
    """The first thing wrong with a chunk record at this tick, or NONE.  JUMP is left to the caller, who knows the pose."""
    rows = int(value["rows"])
    if not 1 <= rows <= MAX_ROWS or int(value["columns"]) != num_joints:
        return Reject.SHAPE
    if value["dtype"].item() != b"<f4":
        return Reject.DTYPE
    if not np.isfinite(value["actions"][:rows]).all():
        return Reject.NOT_FINITE
    if int(value["id"]) <= last_id:
        return Reject.REPLAYED
    if int(value["episode"]) != episode:
        return Reject.OTHER_EPISODE
    if int(value["start_tick"]) > tick or int(value["observation_tick"]) > tick or int(value["t_capture_ns"]) > now_ns:
        return Reject.FUTURE
    if int(value["start_tick"]) + rows <= tick:
        return Reject.EXPIRED
    if now_ns - int(value["t_capture_ns"]) > max_age_ns:
        return Reject.STALE
    return Reject.NONE

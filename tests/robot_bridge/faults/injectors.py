"""What the faults do to the values that one process hands to another: to a policy's chunk, and to records in shared memory.

The same functions serve the rows in simulated time and those with real processes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edgewam.core.records import ActionChunk
from edgewam.robot_bridge.records.shm_record import SharedRecord, Value

FAR_TICKS = 40  # further than a chunk reaches


def _with(chunk: ActionChunk, change: Callable[[np.ndarray], None]) -> ActionChunk:
    actions = chunk.actions.copy()
    change(actions)
    return replace(chunk, actions=actions)


def _set(row: int, joint: int, value: float) -> Callable[[np.ndarray], None]:
    def change(actions: np.ndarray) -> None:
        actions[row, joint] = value

    return change


def _shift(actions: np.ndarray) -> None:
    actions[:, 2] += 0.9


# kind -> what becomes of a good chunk
CHUNKS: dict[str, Callable[[ActionChunk], ActionChunk]] = {
    "nan": lambda chunk: _with(chunk, _set(3, 5, np.nan)),
    "inf": lambda chunk: _with(chunk, _set(15, 0, -np.inf)),
    "jump": lambda chunk: _with(chunk, _shift),
    "beyond": lambda chunk: replace(chunk, actions=chunk.actions + np.float32(3.0)),
    "narrow": lambda chunk: replace(chunk, actions=chunk.actions[:, :5]),
    "empty": lambda chunk: replace(chunk, actions=chunk.actions[:0]),
    "long": lambda chunk: replace(chunk, actions=np.repeat(chunk.actions, 10, 0)),
    "dtype": lambda chunk: replace(chunk, actions=chunk.actions.astype(np.float64)),
    "future": lambda chunk: replace(
        chunk, start_tick=chunk.start_tick + FAR_TICKS, observation_tick=chunk.observation_tick + FAR_TICKS
    ),
    "expired": lambda chunk: replace(chunk, start_tick=chunk.start_tick - FAR_TICKS),
    "old": lambda chunk: replace(chunk, t_capture_ns=chunk.t_capture_ns - 2_000_000_000),
}


def negative_id(value: Value) -> Value:
    """A number that no engine gives."""
    value["id"] = -7
    return value


def replayed_id(value: Value) -> Value:
    """The number of a chunk that came before."""
    value["id"] = 1
    return value


def leave_half_written(record: SharedRecord, value: Value) -> None:
    """What a writer leaves that is killed in the middle of a write: an odd sequence number and half of the bytes."""
    data = np.frombuffer(value.tobytes(), np.uint8)
    record._header["sequence"][0] = (int(record._header["sequence"][0]) + 1) | 1
    record._payload[: len(data) // 2] = data[: len(data) // 2]


def damage(record: SharedRecord) -> None:
    """Bytes that changed without a write: the sequence number is even, the checksum is wrong."""
    record._payload[7] ^= 0xFF


def spoil_writes(active: Callable[[], str], field: str) -> None:
    """Replace `SharedRecord.write` of this process for the records with `field`, by one that obeys `active()`.

    "id_negative", "id_replayed": see above.  "torn": half of the write is done, then the process dies of SIGKILL.
    """
    write = SharedRecord.write

    def spoiled(record: SharedRecord, value: Value) -> None:
        if field in (record.layout.names or ()):
            match active():
                case "id_negative":
                    negative_id(value)
                case "id_replayed":
                    replayed_id(value)
                case "torn":
                    leave_half_written(record, value)
                    os.kill(os.getpid(), signal.SIGKILL)
        write(record, value)

    SharedRecord.write = spoiled  # type: ignore[method-assign]

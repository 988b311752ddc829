"""What a stretch of a bridge's log says: missed and held ticks, lateness, chunk rate, ages, and limits checked once more.

Pure functions of log rows, written apart from the bridge's own report so that a mistake there cannot hide here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.robot_bridge.control.chunks import Reject
from edgewam.robot_bridge.control.modes import Cause, Mode
from edgewam.robot_bridge.robot import RobotSpec

Rows = npt.NDArray[Any]
ROUNDING = 1e-9  # of the difference of two float64 near 1; nothing a motor could notice


def quantiles_ms(samples_ns: Rows) -> dict[str, float | int | None]:
    """n, p50, p99 and max of nanoseconds, in milliseconds."""
    if not len(samples_ns):
        return {"n": 0, "p50_ms": None, "p99_ms": None, "max_ms": None}
    p50, p99, largest = np.percentile(samples_ns / 1e6, [50, 99, 100]).round(3).tolist()
    return {"n": len(samples_ns), "p50_ms": p50, "p99_ms": p99, "max_ms": largest}


def lateness_ns(rows: Rows) -> Rows:
    """Of each command: sent after its deadline."""
    found: Rows = rows["sent_ns"] - rows["deadline_ns"]
    return found


def first_commands(rows: Rows) -> Rows:
    """The first row of each chunk that supplied commands."""
    supplied = rows[rows["chunk_id"] >= 0]
    found: Rows = supplied[np.unique(supplied["chunk_id"], return_index=True)[1]]
    return found


def episodes(rows: Rows) -> Iterator[Rows]:
    """The rows of each episode; between two of them the robot was put back."""
    if len(rows):
        yield from np.split(rows, np.flatnonzero(np.diff(rows["episode"])) + 1)


def violations(rows: Rows, spec: RobotSpec, control_hz: float) -> int:
    """Commands that are not finite, out of range, or further from the one before in their episode than the velocity limit."""
    found, reach = 0, spec.max_velocity / control_hz + ROUNDING
    for part in episodes(rows):
        commands = part["command"]
        good = (commands >= spec.lower - ROUNDING) & (commands <= spec.upper + ROUNDING)  # false for NaN
        good[1:] &= np.abs(np.diff(commands, axis=0)) <= reach
        found += int((~good.all(1)).sum())
    return found


def by_name(kind: type[Cause] | type[Reject], codes: Rows) -> dict[str, int]:
    """How often each code but NONE occurs."""
    values, counts = np.unique(codes[codes != 0], return_counts=True)
    return {kind(int(value)).name.lower(): int(count) for value, count in zip(values, counts, strict=True)}


def stretch(rows: Rows, begin: int, end: int, spec: RobotSpec, control_hz: float) -> dict[str, Any]:
    """Figures of control ticks [begin, end) from the rows of a whole run."""
    rows = rows[(rows["tick"] >= begin) & (rows["tick"] < end)]
    ticks, mode = end - begin, rows["mode"]
    count = {m: int((mode == m).sum()) for m in Mode}
    outside_ready = len(rows) - count[Mode.READY]
    first = first_commands(rows)
    received, reject = int(rows["is_received"].sum()), rows["reject"]
    return {
        "ticks": ticks,
        "sent": len(rows),
        "missed": ticks - len(rows),
        "missed_percent": round(100 * (ticks - len(rows)) / ticks, 4) if ticks else 0.0,
        "ready": count[Mode.READY],
        "held": count[Mode.HOLD],
        "held_by_cause": by_name(Cause, rows["cause"][mode == Mode.HOLD]),
        "hold_percent": round(100 * count[Mode.HOLD] / outside_ready, 4) if outside_ready else 0.0,
        "stopped": count[Mode.STOP] + count[Mode.ESTOP],
        "lateness": quantiles_ms(lateness_ns(rows)),
        "late_by_a_tenth": int((lateness_ns(rows) > 1e8 / control_hz).sum()),
        "chunks_applied": len(first),
        "chunk_hz": round(len(first) * control_hz / ticks, 3) if ticks else 0.0,
        "chunks_received": received,
        "rejected_by_cause": by_name(Reject, reject),
        "clamped": int(((rows["range_clamps"] | rows["step_clamps"] | rows["acceleration_clamps"]) != 0).sum()),
        "observation_to_command": quantiles_ms(first["sent_ns"] - first["t_capture_ns"]),
        "violations": violations(rows, spec, control_hz) + int(rows["is_violation"].sum()),
    }

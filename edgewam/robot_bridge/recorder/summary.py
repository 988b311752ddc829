"""What is in a recording, counted: items and losses by stream, modes, holds, rejected chunks, ages and lateness."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgewam.robot_bridge.chunks import Reject
from edgewam.robot_bridge.modes import Cause, Mode
from edgewam.robot_bridge.recorder.reader import Recording
from edgewam.robot_bridge.report import Quantiles
from edgewam.robot_bridge.shm_record import Value


@dataclass(frozen=True)
class Summary:
    """found: items that could be read, by stream.  lost: by the recorder's own last count, by stream.

    fault: why the recorder stopped before the run did.  torn: parts without a proper end, of which up to a second is missing.
    missed: control periods without a command, as far as no row was lost.  observation_age_ms: of every command that a chunk
    supplied; context_age_ms: of every chunk that has a context, at its first tick.
    """

    parts: list[str]
    torn: list[str]
    bytes: int
    seconds: float
    found: dict[str, int]
    lost: dict[str, int]
    fault: str | None
    episodes: int
    missed: int
    ticks_by_mode: dict[str, int]
    held_by_cause: dict[str, int]
    rejected_by_cause: dict[str, int]
    violations: int
    lateness_ms: Quantiles
    observation_age_ms: Quantiles
    context_age_ms: Quantiles

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)


def summarize(recording: Recording) -> Summary:
    """Read a whole recording once."""
    found = dict.fromkeys(recording.layouts, 0)
    rows, context_ages = [], []
    period_ns = 1e9 / float(recording.run["config"]["control_hz"])
    for name, item in recording.entries():
        found[name] += 1
        if name == "tick":
            rows.append(item)
        elif name == "chunk" and item["context_number"] >= 0:
            context_ages.append(round(int(item["start_tick"] - item["context_tick"]) * period_ns))
    ticks = np.stack(rows) if rows else np.zeros(0, recording.layouts["tick"])
    streams = recording.status.get("streams", {})
    lost = {name: int(streams.get(name, {}).get("lost", 0)) for name in found}
    supplied = ticks[ticks["chunk_id"] >= 0]
    return Summary(
        parts=[path.name for path in recording.parts],
        torn=[path.name for path in recording.torn],
        bytes=sum(path.stat().st_size for path in recording.parts),
        seconds=round(float(ticks["sent_ns"][-1] - ticks["sent_ns"][0]) / 1e9, 3) if len(ticks) else 0.0,
        found=found,
        lost=lost,
        fault=recording.status.get("fault"),
        episodes=len(np.unique(ticks["episode"])),
        missed=_missed(ticks),
        ticks_by_mode=_by_name(Mode, ticks["mode"]),
        held_by_cause=_by_name(Cause, ticks["cause"][ticks["mode"] == Mode.HOLD]),
        rejected_by_cause=_by_name(Reject, ticks["reject"][ticks["reject"] != Reject.NONE]),
        violations=int(ticks["is_violation"].sum()),
        lateness_ms=Quantiles.of(ticks["sent_ns"] - ticks["deadline_ns"]),
        observation_age_ms=Quantiles.of(supplied["sent_ns"] - supplied["t_capture_ns"]),
        context_age_ms=Quantiles.of(np.array(context_ages, np.int64)),
    )


def _missed(ticks: Value) -> int:
    """Ticks that were skipped between rows that follow each other."""
    follows = np.diff(ticks["number"]) == 1
    return int((np.diff(ticks["tick"]) - 1)[follows].sum())


def _by_name(kind: type[Mode] | type[Cause] | type[Reject], codes: Value) -> dict[str, int]:
    values, counts = np.unique(codes, return_counts=True)
    known = {int(member): member.name.lower() for member in kind}
    return {known.get(int(value), str(value)): int(n) for value, n in zip(values, counts, strict=True)}

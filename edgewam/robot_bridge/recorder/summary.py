"""What is in a recording, counted: items and losses by stream, and the report of the run as its supervisor counts it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from edgewam.robot_bridge.counting.report import RunReport
from edgewam.robot_bridge.counting.tally import Tally
from edgewam.robot_bridge.recorder.claims import check_limits
from edgewam.robot_bridge.recorder.reader import Recording
from edgewam.robot_bridge.records.shm_record import Value

_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Summary:
    """found: items that could be read, by stream.  lost: items that are in no file by the recorder's own last count.

    fault: why the recorder stopped before the run did.  torn: parts without a proper end, of which up to a second is missing.
    report: from the recorded log rows, so without what only the supervisor knows (episodes, restarts, memory).
    """

    parts: list[str]
    torn: list[str]
    bytes: int
    found: dict[str, int]
    lost: dict[str, int]
    fault: str | None
    report: RunReport

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)


def summarize(recording: Recording) -> Summary:
    """Read a whole recording once, in constant memory; ArtifactError when it lacks the limits that commands are checked by."""
    check_limits(recording.parts[0], recording.run)
    config = recording.run["config"]
    names = config.get("joint_names") or [f"joint {index}" for index in range(recording.num_joints)]
    rows = _Rows(Tally(config, tuple(names)))
    found = dict.fromkeys(recording.layouts, 0)
    for name, item in recording.entries():
        found[name] += 1
        if name == "tick":
            rows.add(item)
    streams = recording.status.get("streams", {})
    report = rows.report()
    return Summary(
        parts=[path.name for path in recording.parts],
        torn=[path.name for path in recording.torn],
        bytes=sum(path.stat().st_size for path in recording.parts),
        found=found,
        lost={name: int(streams.get(name, {}).get("lost", 0)) for name in found},
        fault=recording.status.get("fault"),
        report=replace(report, robot=str(config["robot"]), robot_options=dict(config.get("robot_options", {}))),
    )


class _Rows:
    """Hands rows to a tally, many at a time, and tells it of gaps in their numbers."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._rows: list[Value] = []
        self._next = self._lost = 0

    def add(self, row: Value) -> None:
        """The next recorded row."""
        number = int(row["number"])
        if number != self._next or len(self._rows) == _ROWS_AT_ONCE:
            self._flush()
            self._lost += max(0, number - self._next)
        self._rows.append(row)
        self._next = number + 1

    def _flush(self) -> None:
        if self._rows:
            self._tally.add(np.stack(self._rows), self._lost)
            self._rows, self._lost = [], 0

    def report(self) -> RunReport:
        """Of all rows, to the last tick that was recorded."""
        self._flush()
        return self._tally.report(self._tally.last_tick + 1)

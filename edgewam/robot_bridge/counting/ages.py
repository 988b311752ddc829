"""How old what the robot acts on is: the way from an image to the motion it causes, in parts, counted from the log of the run.

captured -> frame published -> inference begun -> chunk published -> first command sent -> command handed to the robot
"""

from __future__ import annotations

import numpy as np

from edgewam.robot_bridge.counting.histogram import AGE_EDGES_MS, CoarseCounts, FineCounts, Quantiles, Samples
from edgewam.robot_bridge.records.shm_record import Value

AGE_RESOLUTION_NS, AGE_LIMIT_NS = 10_000, 2_000_000_000
MS = 1_000_000
_MEMORY_ROWS = 64  # commands that one may still learn about: the driver hands a command on within a few ticks, or never

# part -> the two moments (fields of the log row that sent a chunk's first command) it lies between
PARTS = {
    "capture_to_frame": ("t_capture_ns", "t_frame_ns"),
    "frame_to_engine": ("t_frame_ns", "t_begin_ns"),
    "inference": ("t_begin_ns", "t_chunk_ns"),
    "chunk_to_command": ("t_chunk_ns", "sent_ns"),
}
APPLIED = "command_to_robot"  # every command: sent until the driver handed it to the robot
END_TO_END = "capture_to_robot"  # the first command of each chunk


def age_counts() -> FineCounts:
    """An empty count of ages in ns: 10 us bins up to 2 s."""
    return FineCounts(AGE_RESOLUTION_NS, AGE_LIMIT_NS)


class Ages:
    """Counts of the ages.  `add` takes the log some rows at a time."""

    def __init__(self) -> None:
        self._first, self._all = age_counts(), age_counts()
        self._first_coarse = CoarseCounts(AGE_EDGES_MS)
        self._parts = {name: age_counts() for name in (*PARTS, APPLIED, END_TO_END)}
        self._newest_applied = -1
        # of the last commands: tick, when sent, capture time of the chunk whose first command it was (0: another command)
        self._sent: Samples = np.zeros((0, 3), np.int64)

    def add(self, rows: Value, is_first: Value) -> None:
        """Rows of the log; is_first [n]: the row sent the first command of its chunk."""
        supplied, first = rows[rows["chunk_id"] >= 0], rows[is_first]
        self._all.add(supplied["sent_ns"] - supplied["t_capture_ns"])
        ages = first["sent_ns"] - first["t_capture_ns"]
        self._first.add(ages)
        self._first_coarse.add(ages)
        for name, (begin, end) in PARTS.items():
            self._parts[name].add(first[end] - first[begin])
        capture_ns = np.where(is_first, rows["t_capture_ns"], 0)
        sent = np.concatenate([self._sent, np.stack([rows["tick"], rows["sent_ns"], capture_ns], 1)])
        self._add_applied(rows, sent)
        self._sent = sent[-_MEMORY_ROWS:].copy()

    def _add_applied(self, rows: Value, sent: Samples) -> None:
        """The commands that the robot has got since; each is reported by all later rows until there is a newer one."""
        ticks, places = np.unique(rows["applied_tick"], return_index=True)
        is_new = (ticks > self._newest_applied) & (rows["applied_ns"][places] > 0)
        ticks, applied_ns = ticks[is_new], rows["applied_ns"][places[is_new]]
        if not len(ticks):
            return
        self._newest_applied = int(ticks[-1])
        place = np.minimum(np.searchsorted(sent[:, 0], ticks), len(sent) - 1)
        known = sent[place, 0] == ticks
        _, sent_ns, capture_ns = sent[place[known]].T
        self._parts[APPLIED].add(applied_ns[known] - sent_ns)
        is_first = capture_ns > 0
        self._parts[END_TO_END].add((applied_ns[known] - capture_ns)[is_first])

    @property
    def observation_to_command(self) -> Quantiles:
        """First commands of chunks, in ms."""
        return self._first.quantiles(MS)

    @property
    def command_age(self) -> Quantiles:
        """All commands that a chunk supplied, in ms."""
        return self._all.quantiles(MS)

    @property
    def in_parts(self) -> dict[str, Quantiles]:
        """The way in parts, in ms."""
        return {name: counts.quantiles(MS) for name, counts in self._parts.items()}

    @property
    def histogram(self) -> dict[str, list[float]]:
        """Of observation_to_command."""
        return self._first_coarse.to_json()

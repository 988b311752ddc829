"""Counts a run from the rows of its log while it lasts, in constant memory: a run may take days.

Counting is done outside of the loop, from the commands that were sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy as np

from edgewam.robot_bridge.control.chunks import Reject
from edgewam.robot_bridge.control.modes import Cause, Mode
from edgewam.robot_bridge.counting.ages import MS, Ages, age_counts
from edgewam.robot_bridge.counting.histogram import AGE_EDGES_MS, LATENESS_EDGES_MS, CoarseCounts, FineCounts
from edgewam.robot_bridge.counting.limit_check import LimitCheck
from edgewam.robot_bridge.counting.report import ADVICE, RunReport
from edgewam.robot_bridge.counting.smoothness import SmoothnessMeter
from edgewam.robot_bridge.records.shm_record import Value

LATE_SHARES = {"10 %": 0.1, "50 %": 0.5, "100 %": 1.0}  # of a period; beyond the first one a command counts as late
LATENESS_RESOLUTION_NS, LATENESS_LIMIT_NS = 1_000, 100_000_000
MAX_CONTEXT_AGE_TICKS = 10_000
CLAMPS = {"range": "range_clamps", "velocity": "step_clamps", "acceleration": "acceleration_clamps"}


class Tally:
    """Takes the log of the io process some rows at a time.

    config: lower, upper, max_velocity, max_acceleration (or None) [D], control_hz.
    """

    def __init__(self, config: Mapping[str, Any], joint_names: tuple[str, ...]) -> None:
        self._joint_names = joint_names
        self._period_ns = 1e9 / float(config["control_hz"])
        self._limits = LimitCheck(config)
        self._n: Counter[str] = Counter()
        self._modes: Counter[int] = Counter()
        self._hold_causes: Counter[int] = Counter()
        self._rejects: Counter[int] = Counter()
        self._transitions: Counter[str] = Counter()
        self._clamps = {kind: np.zeros(len(joint_names), np.int64) for kind in CLAMPS}
        self._clamped = np.zeros(len(joint_names), np.int64)
        self._lateness = FineCounts(LATENESS_RESOLUTION_NS, LATENESS_LIMIT_NS)
        self._wake = FineCounts(LATENESS_RESOLUTION_NS, LATENESS_LIMIT_NS)
        self._lateness_coarse, self._engine_coarse = CoarseCounts(LATENESS_EDGES_MS), CoarseCounts(AGE_EDGES_MS)
        self._engine, self._context_age = age_counts(), FineCounts(1, MAX_CONTEXT_AGE_TICKS)
        self._ages = Ages()
        self._smoothness = SmoothnessMeter(np.array(config["max_velocity"], np.float64), float(config["control_hz"]))
        self._parts = 0
        self._newest_chunk = -1
        self._first_sent_ns = 0
        self._latch = ""
        self._last: Value | None = None  # last row, unless the ones after it are lost
        self._last_mode = int(Mode.INIT)
        self._last_tick, self._last_sent_ns = -1, 0

    @property
    def last_tick(self) -> int:
        """Of the last command; -1 before the first."""
        return self._last_tick

    def add(self, rows: Value, lost: int = 0) -> None:
        """Count rows [n] of the log, in order; `lost` rows before them are missing."""
        self._n["lost"] += lost
        if not len(rows):
            return
        if lost:
            self._last = None  # nothing is known about what came before
            self._limits.forget()
        if not self._first_sent_ns:
            self._first_sent_ns = int(rows["sent_ns"][0])
        self._add_time(rows)
        self._add_modes(rows)
        self._add_chunks(rows)
        self._add_limits(rows)
        self._last = rows[-1].copy()
        self._last_tick, self._last_sent_ns = int(rows["tick"][-1]), int(rows["sent_ns"][-1])

    def _previous(self, rows: Value) -> Value:
        """The row before each row; before the very first one, itself."""
        before = rows[:1] if self._last is None else np.array([self._last], rows.dtype)
        return np.concatenate([before, rows[:-1]])

    def _add_time(self, rows: Value) -> None:
        lateness = rows["sent_ns"] - rows["deadline_ns"]
        self._lateness.add(lateness)
        self._lateness_coarse.add(lateness)
        self._wake.add(rows["woken_ns"] - rows["deadline_ns"])
        for name, share in LATE_SHARES.items():
            self._n[name] += int((lateness > share * self._period_ns).sum())
        gaps = rows["tick"] - self._previous(rows)["tick"] - 1
        self._n["gap"] = max(self._n["gap"], int(gaps.max()))
        self._n["counted"] += len(rows)

    def _add_modes(self, rows: Value) -> None:
        mode = rows["mode"]
        previous = np.concatenate([[self._last_mode], mode[:-1]])
        self._last_mode = int(mode[-1])
        self._modes.update(mode.tolist())
        self._hold_causes.update(rows["cause"][mode == Mode.HOLD].tolist())
        for place in np.flatnonzero(mode != previous):
            now, cause = Mode(int(mode[place])), _name(Cause, int(rows["cause"][place]))
            self._transitions[f"{Mode(int(previous[place])).name} > {now.name}" + ("" if cause == "none" else f" {cause}")] += 1
            if now >= Mode.STOP:
                self._latch = _latch(rows[place])

    def _add_chunks(self, rows: Value) -> None:
        self._n["received"] += int(rows["is_received"].sum())
        self._rejects.update(rows["reject"][rows["reject"] != Reject.NONE].tolist())
        infer_ns = rows["infer_ns"][rows["is_received"] != 0]
        self._engine.add(infer_ns)
        self._engine_coarse.add(infer_ns)
        newest = np.maximum.accumulate(np.concatenate([[self._newest_chunk], rows["chunk_id"]]))
        is_first = newest[1:] > newest[:-1]
        self._newest_chunk = int(newest[-1])
        self._n["applied"] += int(is_first.sum())
        self._ages.add(rows, is_first)
        planned = rows[(rows["chunk_id"] >= 0) & (rows["context_number"] >= 0)]
        self._context_age.add(planned["tick"] - planned["context_tick"])
        previous = self._previous(rows)
        follows_on = (rows["mode"] == Mode.RUN) & (previous["mode"] == Mode.RUN) & (rows["episode"] == previous["episode"])
        parts = self._parts + np.cumsum(~(follows_on & (rows["tick"] - previous["tick"] <= 1)))
        self._parts = int(parts[-1])
        self._smoothness.add(rows["command"], is_first, parts)

    def _add_limits(self, rows: Value) -> None:
        masks = {kind: rows[field] for kind, field in CLAMPS.items()}
        for kind, mask in masks.items():
            self._clamps[kind] += _by_joint(mask, len(self._joint_names))
        together = np.bitwise_or.reduce(list(masks.values()))
        self._clamped += _by_joint(together, len(self._joint_names))
        self._n["clamped"] += int((together != 0).sum())
        self._n["workspace"] += int((rows["workspace"] != 0).sum())
        self._n["violations"] += int((rows["is_violation"] != 0).sum())
        self._n["violations in log"] += self._limits.count(rows)

    @property
    def latch(self) -> str | None:
        """What a user should know about a run that is in STOP or ESTOP; None when it is not."""
        return self._latch if self._last_mode >= Mode.STOP else None

    def report(self, num_ticks: int, silent: int = 0) -> RunReport:
        """So far; num_ticks: control periods that the run has lasted, `silent` of them with nothing to send."""
        n, modes = self._n, self._modes
        sent = n["counted"] + n["lost"]
        missed = num_ticks - sent - silent
        ready, run, held = (modes[m] for m in (Mode.READY, Mode.RUN, Mode.HOLD))
        rejected = sum(self._rejects.values())
        seconds = num_ticks * self._period_ns / 1e9
        duration_s = (self._last_sent_ns - self._first_sent_ns) / 1e9
        smoothness = self._smoothness.result()
        return RunReport(
            ticks=num_ticks,
            sent=sent,
            missed=missed,
            silent=silent,
            late=n[next(iter(LATE_SHARES))],
            ready=ready,
            run=run,
            held=held,
            stopped=n["counted"] - ready - run - held,
            held_by_cause=_by_name(Cause, self._hold_causes),
            hold_percent=_percent(held, n["counted"] - ready),
            missed_percent=_percent(missed, num_ticks),
            chunks_received=n["received"],
            chunks_applied=n["applied"],
            chunks_superseded=n["received"] - rejected - n["applied"],
            rejected=rejected,
            rejected_by_cause=_by_name(Reject, self._rejects),
            clamped=n["clamped"],
            clamped_by_joint=self._per_joint(self._clamped),
            violations=n["violations"],
            violations_in_log=n["violations in log"],
            control_hz=round((sent - 1) / duration_s, 3) if duration_s else 0.0,
            chunk_hz=round(n["applied"] / seconds, 3) if seconds else 0.0,
            lateness_ms=self._lateness.quantiles(MS),
            engine_ms=self._engine.quantiles(MS),
            observation_to_command_ms=self._ages.observation_to_command,
            command_age_ms=self._ages.command_age,
            histograms={
                "lateness_ms": self._lateness_coarse.to_json(),
                "engine_ms": self._engine_coarse.to_json(),
                "observation_to_command_ms": self._ages.histogram,
            },
            final_mode=Mode(self._last_mode).name,
            late_by_share={name: n[name] for name in LATE_SHARES},
            longest_gap_ticks=n["gap"],
            lost_log_rows=n["lost"],
            clamped_by_limit={kind: self._per_joint(counts) for kind, counts in self._clamps.items()},
            workspace_changes=n["workspace"],
            transitions=dict(sorted(self._transitions.items())),
            wake_ms=self._wake.quantiles(MS),
            age_parts_ms=self._ages.in_parts,
            context_age_ticks=self._context_age.quantiles(1),
            seam_jerk=smoothness.seam_jerk,
            inner_jerk=smoothness.inner_jerk,
            seconds=seconds,
        )

    def _per_joint(self, counts: Value) -> dict[str, int]:
        return {name: int(n) for name, n in zip(self._joint_names, counts, strict=True) if n}


def _by_joint(masks: Value, num_joints: int) -> Value:
    """Masks [n] with bit j for joint j -> how many have the bit [D]."""
    counts: Value = (masks[:, None] >> np.arange(num_joints, dtype=masks.dtype) & 1).sum(0).astype(np.int64)
    return counts


def _latch(row: Value) -> str:
    tick = int(row["tick"])
    if row["mode"] == Mode.ESTOP:
        return f"ESTOP was latched at tick {tick}."
    cause = _name(Cause, int(row["cause"]))
    return f"STOP was latched at tick {tick}: {ADVICE.get(cause, cause)}."


def _name(kind: type[IntEnum], code: int) -> str:
    return kind(code).name.lower()


def _by_name(kind: type[IntEnum], counts: Mapping[int, int]) -> dict[str, int]:
    return {_name(kind, code): counts[code] for code in sorted(counts)}


def _percent(part: int, whole: int) -> float:
    return round(100.0 * part / whole, 3) if whole else 0.0

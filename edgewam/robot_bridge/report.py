"""What a real-time run was like, counted from its log: every tick, hold, rejection and clamp, ages, lateness and violations.

Counting is done after the run and outside of the loop, from the commands that were sent; the limits are checked here once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.robot_bridge.chunks import Reject
from edgewam.robot_bridge.histogram import AGE_EDGES_MS, LATENESS_EDGES_MS, histogram
from edgewam.robot_bridge.modes import Cause, Mode
from edgewam.robot_bridge.safety import is_violation
from edgewam.robot_bridge.shm_record import Value

LATE = 0.1  # a command sent more than this part of a period after its deadline is late (and still sent)


@dataclass(frozen=True)
class Quantiles:
    """Of n samples, in milliseconds; all None when there are none."""

    n: int
    p50: float | None = None
    p99: float | None = None
    max: float | None = None

    @classmethod
    def of(cls, samples_ns: npt.NDArray[np.int64]) -> Quantiles:
        """From nanoseconds."""
        if not len(samples_ns):
            return cls(0)
        p50, p99, largest = np.percentile(samples_ns / 1e6, [50, 99, 100]).round(3).tolist()
        return cls(len(samples_ns), p50, p99, largest)


@dataclass(frozen=True)
class RunReport:
    """Counters of one run.

    ticks = sent + missed: control periods since the epoch; a missed tick was skipped because it would have begun more than
    half a period late.  late: sent, but more than 10 % of a period after the deadline.
    sent = ready + run + held + stopped: READY is the declared pause from an episode's start to its first chunk (at most half
    a second, then it is held); held is broken down by cause, hold_percent is held over the ticks outside READY.
    chunks_received = chunks_applied + chunks_superseded + rejected: applied chunks supplied at least one command.
    clamped: commands changed by the range or the velocity limit, by joint.
    violations: commands that break a limit, found by the io process after its filter, and again here from the log.
    observation_to_command_ms: for each applied chunk, time of the first command sent from it minus the capture time of the
    observation it was computed from.  command_age_ms: the same difference for every command that a chunk supplied.
    is_complete: the run lasted to its end and did not latch STOP; faults says what went wrong, also on the way.
    histograms: counts in fixed bins of lateness_ms, engine_ms and observation_to_command_ms (robot_bridge/histogram.py).
    robot_options: how the robot was made, such as its task when that is not the default one.
    chunk_hz = chunks_applied over the whole time of the run, pauses included; control_hz from first to last command.
    """

    ticks: int
    sent: int
    missed: int
    late: int
    ready: int
    run: int
    held: int
    stopped: int
    held_by_cause: dict[str, int]
    hold_percent: float
    missed_percent: float
    chunks_received: int
    chunks_applied: int
    chunks_superseded: int
    rejected: int
    rejected_by_cause: dict[str, int]
    clamped: int
    clamped_by_joint: dict[str, int]
    violations: int
    violations_in_log: int
    control_hz: float
    chunk_hz: float
    lateness_ms: Quantiles
    engine_ms: Quantiles
    observation_to_command_ms: Quantiles
    command_age_ms: Quantiles
    histograms: dict[str, dict[str, list[Any]]]
    final_mode: str
    robot: str = ""
    robot_options: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    is_complete: bool = True
    faults: list[str] = field(default_factory=list)
    engine_restarts: int = 0
    episodes: list[dict[str, Any]] = field(default_factory=list)
    num_strict_successes: int = 0
    real_time: dict[str, Any] = field(default_factory=dict)
    frames: int = 0
    skipped_frames: int = 0
    torn_reads: int = 0
    driver_caught_up_ticks: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)


def count(log: Value, num_ticks: int, config: Mapping[str, Any], joint_names: tuple[str, ...]) -> RunReport:
    """Count a log of the io process (rows that were written only).

    num_ticks: control periods that the run lasted.  config: lower, upper, max_velocity [D], control_hz.
    """
    period_ns = 1e9 / float(config["control_hz"])
    sent = len(log)
    mode, reject = log["mode"], log["reject"]
    lateness = log["sent_ns"] - log["deadline_ns"]
    ready, run, held = (int((mode == m).sum()) for m in (Mode.READY, Mode.RUN, Mode.HOLD))
    received, rejected = int(log["is_received"].sum()), int((reject != Reject.NONE).sum())
    supplied = log[log["chunk_id"] >= 0]
    _, first = np.unique(supplied["chunk_id"], return_index=True)
    ages = supplied["sent_ns"] - supplied["t_capture_ns"]
    duration_s = (log["sent_ns"][-1] - log["sent_ns"][0]) / 1e9 if sent > 1 else 0.0
    clamps = log["range_clamps"] | log["step_clamps"]
    engine = log["infer_ns"][log["is_received"] != 0]
    return RunReport(
        ticks=num_ticks,
        sent=sent,
        missed=num_ticks - sent,
        late=int((lateness > LATE * period_ns).sum()),
        ready=ready,
        run=run,
        held=held,
        stopped=sent - ready - run - held,
        held_by_cause=_by_name(Cause, log["cause"][mode == Mode.HOLD]),
        hold_percent=_percent(held, sent - ready),
        missed_percent=_percent(num_ticks - sent, num_ticks),
        chunks_received=received,
        chunks_applied=len(first),
        chunks_superseded=received - rejected - len(first),
        rejected=rejected,
        rejected_by_cause=_by_name(Reject, reject[reject != Reject.NONE]),
        clamped=int((clamps != 0).sum()),
        clamped_by_joint={name: n for j, name in enumerate(joint_names) if (n := int((clamps >> j & 1).sum()))},
        violations=int(log["is_violation"].sum()),
        violations_in_log=_violations(log, config),
        control_hz=round((sent - 1) / duration_s, 3) if duration_s else 0.0,
        chunk_hz=round(len(first) / (num_ticks * period_ns / 1e9), 3) if num_ticks else 0.0,
        lateness_ms=Quantiles.of(lateness),
        engine_ms=Quantiles.of(engine),
        observation_to_command_ms=Quantiles.of(ages[first]),
        command_age_ms=Quantiles.of(ages),
        histograms={
            "lateness_ms": histogram(lateness, LATENESS_EDGES_MS),
            "engine_ms": histogram(engine, AGE_EDGES_MS),
            "observation_to_command_ms": histogram(ages[first], AGE_EDGES_MS),
        },
        final_mode=Mode(int(mode[-1])).name if sent else Mode.INIT.name,
        seconds=num_ticks * period_ns / 1e9,
    )


def latched(log: Value) -> str | None:
    """What a user should know about a run that ended in STOP or ESTOP, from its log; None when it did not."""
    if not len(log) or log["mode"][-1] < Mode.STOP:
        return None
    first = log[np.argmax(log["mode"] >= Mode.STOP)]
    cause, tick = Cause(int(first["cause"])), int(first["tick"])
    if first["mode"] == Mode.ESTOP:
        return f"ESTOP was latched at tick {tick}."
    advice = {
        Cause.NO_CHUNK: "the engine gave no valid chunk; see rejected_by_cause and engine_ms",
        Cause.STALE_STATE: "the robot's state was old or not finite; is the driver starved of processor time?",
        Cause.APPROACH: "the policy asked for poses out of reach; is it trained for this robot and prompt?",
    }
    return f"STOP was latched at tick {tick}, after a hold that did not end: {advice.get(cause, 'on request')}."


def _violations(log: Value, config: Mapping[str, Any]) -> int:
    """Commands in the log that break a limit.  The first of an episode has no predecessor: the robot was put back."""
    lower, upper = np.array(config["lower"], np.float64), np.array(config["upper"], np.float64)
    max_step = np.array(config["max_velocity"], np.float64) / float(config["control_hz"])
    found, previous, episode = 0, None, None
    for row in log:
        command = row["command"]
        found += is_violation(command, previous if row["episode"] == episode else None, lower, upper, max_step)
        previous, episode = command, row["episode"]
    return found


def _by_name(kind: type[Cause] | type[Reject], codes: npt.NDArray[Any]) -> dict[str, int]:
    values, counts = np.unique(codes, return_counts=True)
    return {kind(int(value)).name.lower(): int(n) for value, n in zip(values, counts, strict=True)}


def _percent(part: int, whole: int) -> float:
    return round(100.0 * part / whole, 3) if whole else 0.0

"""What a faulty run was like, from the rows of its log and the diary of the robot; nothing here asks the bridge for its opinion.

The limits of motion are checked on the commands themselves, in another way than the bridge's own filter does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgewam.robot_bridge.control.chunks import Reject
from edgewam.robot_bridge.control.modes import Cause, Mode
from edgewam.robot_bridge.robot import RobotSpec

ROUNDING = 1e-9  # of a sum and a difference of float64 near 1
STEADY_TICKS = 25  # a run that ends with so many ticks of RUN has recovered
UNAFFECTED, RECOVERS, STOPS, ESTOPS, ENDS = "unaffected", "recovers", "latches STOP", "latches ESTOP", "run ends"


@dataclass(frozen=True)
class Seen:
    """hold_after: ticks from the fault's begin to the first one in HOLD or STOP, None without one; cause: of that one.

    held: ticks in HOLD.  counted: everything that was counted, by "what:name".  not_finite, violations: commands in the log that
    break a limit.  worst_step: largest change of a command in units of the velocity limit.  outcome: one of the five above.
    """

    ticks: int
    hold_after: int | None
    held: int
    cause: str
    counted: dict[str, int]
    not_finite: int
    violations: int
    worst_step: float
    outcome: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def counts(kind: type[Cause] | type[Reject], codes: np.ndarray, prefix: str) -> dict[str, int]:
    """How often each code but NONE occurs, under "prefix:name"."""
    values, numbers = np.unique(codes[codes != 0], return_counts=True)
    return {f"{prefix}:{kind(int(v)).name.lower()}": int(n) for v, n in zip(values, numbers, strict=True)}


def is_never_hurried(rows: np.ndarray, period_ns: int) -> bool:
    """Whether io made up for nothing that it had missed: each tick begins within half a period of its deadline, and no command
    follows another one more closely than that.
    """
    late_ns = rows["woken_ns"] - rows["deadline_ns"]
    is_in_time = (late_ns >= 0) & (late_ns <= period_ns / 2)
    return bool(is_in_time.all() and (np.diff(rows["sent_ns"]) >= period_ns / 2).all())


def steps_too_far(commands: np.ndarray, ticks: np.ndarray, spec: RobotSpec) -> tuple[int, float]:
    """Commands [n, D] that moved further than the velocity limit allows in `ticks` [n - 1]; the worst in units of the limit."""
    if len(commands) < 2:
        return 0, 0.0
    reach = (spec.max_velocity / spec.control_hz)[None] * ticks[:, None]
    moved = np.abs(np.diff(commands, axis=0))
    # NaN compares false both ways: count what is not within
    return int((~(moved <= reach + ROUNDING)).any(1).sum()), float(np.nanmax(moved / reach, initial=0.0))


def too_sudden(commands: np.ndarray, max_change: float) -> int:
    """Commands [n, D], one per tick, whose step differs from the one before by more than `max_change`."""
    standing = np.concatenate([commands[:1], commands])  # the arm stood before the first one
    return int((~(np.abs(np.diff(standing, 2, axis=0)) <= max_change + ROUNDING)).any(1).sum())


def out_of_range(commands: np.ndarray, spec: RobotSpec) -> int:
    """Commands [n, D] with a joint outside of its range."""
    inside = (commands >= spec.lower - ROUNDING) & (commands <= spec.upper + ROUNDING)
    return int((~inside).any(1).sum())


def judge(rows: np.ndarray, begin: int, spec: RobotSpec, counted: Mapping[str, int], *, ended: bool = False) -> Seen:
    """Judge a log.

    rows: of one episode, in order.  begin: tick at which the fault began.  counted: what others counted (restarts, torn reads,
    faults of processes).  ended: the run was over before its time.
    """
    commands, mode = rows["command"], rows["mode"]
    too_far, worst = steps_too_far(commands, np.ones(len(rows) - 1), spec)
    after = rows[rows["tick"] >= begin]
    halted, holds = after[after["mode"] >= Mode.HOLD], after[after["mode"] == Mode.HOLD]
    if (mode == Mode.ESTOP).any():
        outcome = ESTOPS if (mode[np.argmax(mode == Mode.ESTOP) :] == Mode.ESTOP).all() else "left ESTOP"
    elif ended:
        outcome = ENDS
    elif (mode == Mode.STOP).any():
        outcome = STOPS if (mode[np.argmax(mode == Mode.STOP) :] == Mode.STOP).all() else "left STOP"
    elif not (mode[-STEADY_TICKS:] == Mode.RUN).all():
        outcome = f"ends in {Mode(int(mode[-1])).name}"
    else:
        outcome = RECOVERS if len(holds) else UNAFFECTED
    return Seen(
        ticks=len(rows),
        hold_after=int(halted["tick"][0]) - begin if len(halted) else None,
        held=len(holds),
        cause=Cause(int(halted["cause"][0])).name.lower() if len(halted) else "",
        counted={
            **counts(Cause, rows["cause"][mode == Mode.HOLD], "hold"),
            **counts(Reject, rows["reject"], "reject"),
            **{name: number for name, number in counted.items() if number},
            **{name: number for name, number in clamps(rows).items() if number},
        },
        not_finite=int((~np.isfinite(commands)).any(1).sum()),
        violations=too_far + out_of_range(commands, spec) + int(rows["is_violation"].sum()),
        worst_step=round(worst, 3),
        outcome=outcome,
    )


def clamps(rows: np.ndarray) -> dict[str, int]:
    """Commands that the filter changed."""
    return {f"clamp:{name}": int((rows[f"{name}_clamps"] != 0).sum()) for name in ("range", "step")}


def complaints(
    seen: Seen, hold_within: int | None, cause: Sequence[str], counted: Sequence[str], outcomes: Sequence[str]
) -> list[str]:
    """In what a run differs from what was expected of it; empty when in nothing."""
    found = []
    if seen.not_finite or seen.violations:
        found.append(f"{seen.not_finite} commands not finite, {seen.violations} violations, worst step {seen.worst_step}")
    if seen.outcome not in outcomes:
        found.append(f"outcome '{seen.outcome}', expected {' or '.join(outcomes)}")
    if hold_within is None and seen.held:
        found.append(f"{seen.held} ticks of HOLD ({seen.cause}), expected none")
    must_hold = hold_within is not None and UNAFFECTED not in outcomes
    too_late = hold_within is not None and (seen.hold_after or 0) > hold_within
    if too_late or (must_hold and seen.hold_after is None):
        found.append(f"HOLD after {seen.hold_after} ticks, expected within {hold_within}")
    if cause and seen.hold_after is not None and seen.cause not in cause:
        found.append(f"held for '{seen.cause}', expected {' or '.join(cause)}")
    found += [f"'{name}' was not counted; counted: {seen.counted}" for name in counted if not seen.counted.get(name)]
    return found

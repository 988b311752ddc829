"""What a real-time run was like: the counters of `tally.py` and what the processes said about themselves, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from edgewam.robot_bridge.counting.histogram import Quantiles

# what a user should do about a latched STOP, by its cause
ADVICE = {
    "none": "on request",
    "request": "on request",
    "no_chunk": "a hold did not end, the engine gave no valid chunk; see rejected_by_cause and engine_ms",
    "stale_state": "the robot's state was old or not finite; is the driver starved of processor time?",
    "approach": "a hold did not end, the policy asked for poses out of reach; is it trained for this robot and prompt?",
    "camera": "a camera was lost; see lost_images and its cable",
    "engine_lost": "the engine was not heard of any more; see faults",
    "old_context": "the planner's context was too old; see context_age_ticks",
    "rejects": "too many chunks in a row were refused; see rejected_by_cause",
    "recovering": "too few good chunks came in a row; see rejected_by_cause",
}


@dataclass(frozen=True)
class RunReport:
    """Counters of one run.

    ticks = sent + missed + silent: control periods since the epoch; a missed tick was skipped because it would have begun more
    than half a period late, a silent one had nothing to send: the robot had not reported, or stood armed outside of its range.
    late: sent, but more than 10 % of a period after the deadline; late_by_share: the same beyond 10, 50 and 100 % of a period.
    longest_gap_ticks: most ticks without a command in a row.
    sent = ready + run + held + stopped + lost_log_rows: READY is the declared pause from an episode's start to its first chunk
    (at most half a second, then it is held); held is broken down by cause, hold_percent is held over the ticks outside READY.
    lost_log_rows: commands that were sent while the supervisor did not read the log for longer than it holds.
    chunks_received = chunks_applied + chunks_superseded + rejected: applied chunks supplied at least one command.
    clamped: commands changed by the range, the velocity or the acceleration limit, by joint and by the kind of limit.
    violations: commands that break a limit, found by the io process after its filter, and again here from the log.
    transitions: changes of the mode, such as "RUN > HOLD no_chunk".
    observation_to_command_ms: for each applied chunk, time of the first command sent from it minus the capture time of the
    observation it was computed from.  command_age_ms: the same difference for every command that a chunk supplied.
    age_parts_ms: the same way in parts, and on to the robot (`ages.py`).  wake_ms: from a tick's deadline to its
    begin; lateness_ms: to the command sent.  context_age_ticks: of every command, age of the planner refresh behind it.
    seam_jerk, inner_jerk: see `Smoothness`; of the commands in RUN.
    is_complete: the run lasted to its end and did not latch STOP; faults says what went wrong, also on the way.
    histograms: counts in fixed bins of lateness_ms, engine_ms and observation_to_command_ms (`histogram.py`).
    robot_options: how the robot was made, such as its task when that is not the default one.
    chunk_hz = chunks_applied over the whole time of the run, pauses included; control_hz from first to last command.
    restarts: by role, engine_restarts is one of them.  memory_mb: by role, see `memory.py`.
    robot_errors: exceptions of a real robot.  lost_images: by camera, frames that had to show an old image.
    processes: by role, what else it counted; of a process that was started again, the last one (so are frames and lost_images).
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
    late_by_share: dict[str, int]
    longest_gap_ticks: int
    lost_log_rows: int
    clamped_by_limit: dict[str, dict[str, int]]
    workspace_changes: int
    transitions: dict[str, int]
    wake_ms: Quantiles
    age_parts_ms: dict[str, Quantiles]
    context_age_ticks: Quantiles
    seam_jerk: float | None
    inner_jerk: float | None
    silent: int = 0
    robot: str = ""
    robot_options: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    is_complete: bool = True
    faults: list[str] = field(default_factory=list)
    engine_restarts: int = 0
    restarts: dict[str, int] = field(default_factory=dict)
    episodes: list[dict[str, Any]] = field(default_factory=list)
    num_strict_successes: int = 0
    real_time: dict[str, Any] = field(default_factory=dict)
    memory_mb: dict[str, dict[str, float]] = field(default_factory=dict)
    frames: int = 0
    skipped_frames: int = 0
    lost_images: dict[str, int] = field(default_factory=dict)
    torn_reads: int = 0
    driver_caught_up_ticks: int = 0
    robot_errors: int = 0
    processes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)

"""What a person wants to know after a real-time run, as one table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgewam.cli._output import say, table

if TYPE_CHECKING:
    from edgewam.robot_bridge.counting.report import RunReport


def show(result: RunReport) -> None:
    """The counters that matter, as a table on stderr, and below it what went wrong."""
    age, lateness, engine = result.observation_to_command_ms, result.lateness_ms, result.engine_ms
    late = ", ".join(f"{n} by more than {share}" for share, n in result.late_by_share.items())
    missed = f"missed {result.missed} ({result.missed_percent:.2f} %), {result.longest_gap_ticks} in a row"
    silent = f", nothing to send in {result.silent}" if result.silent else ""
    rows: list[list[Any]] = [
        ["control_hz", result.control_hz, "commands sent per second"],
        ["chunk_hz", result.chunk_hz, "fresh chunks applied per second"],
        ["ticks", result.ticks, missed + silent],
        ["late", result.late, f"{late} of a period"],
        ["held", result.held, f"{result.hold_percent:.2f} % of the ticks after READY {result.held_by_cause or ''}"],
        ["stopped", result.stopped, _counts(result.transitions)],
        ["rejected", result.rejected, f"{result.rejected_by_cause or 'chunks'}"],
        ["clamped", result.clamped, _counts({kind: sum(n.values()) for kind, n in result.clamped_by_limit.items()})],
        ["violations", result.violations + result.violations_in_log, "limits broken by a command that was sent"],
        ["observation to command", age.p50 or 0.0, f"ms p50; p99 {age.p99}, max {age.max}"],
        ["", "", "in parts, p50: " + _counts({name: part.p50 for name, part in result.age_parts_ms.items()})],
        ["tick lateness", lateness.p50 or 0.0, f"ms p50; p99 {lateness.p99}, max {lateness.max}"],
        ["engine", engine.p50 or 0.0, f"ms per answer p50; p99 {engine.p99}, max {engine.max}"],
        ["context age", result.context_age_ticks.p50 or 0, f"ticks p50; max {result.context_age_ticks.max}"],
        ["jerk at seams", result.seam_jerk or 0.0, f"within chunks {result.inner_jerk or 0.0:.3f}"],
        ["restarts", sum(result.restarts.values()), _counts(result.restarts)],
        ["memory", sum(m["last"] for m in result.memory_mb.values()), "MB; " + _memory(result.memory_mb)],
        ["lost", result.lost_log_rows + result.torn_reads, f"log rows and torn reads; images {result.lost_images or 0}"],
        ["strict successes", result.num_strict_successes, f"of {len(result.episodes)} finished episodes"],
    ]
    if (recorder := result.processes.get("recorder")) is not None:
        rows.append(["recorded", recorder.get("bytes", 0) / 1e6, f"MB; {recorder.get('lost', 'unknown')} messages lost"])
    table(f"{result.robot}, {result.seconds:.0f} s in real time", ["counter", "value", "detail"], rows)
    for fault in result.faults:
        say(fault)


def _counts(counts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in counts.items()) or "none"


def _memory(processes: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{role} {m['last']:.0f} ({m['growth_percent']:+.1f} %)" for role, m in processes.items()) or "not measured"

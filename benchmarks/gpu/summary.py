"""The short table at the end of `make gpu`: one row per section, the figure that matters first."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.runner import Outcome
from benchmarks.results import Section
from edgewam.profiles.report import table

_MAIN = (
    "share", "worst_off", "within_limits", "fused_is_faster_by", "p99_over_idle", "added_median", "cosine_min",
    "bandwidth_gb_s", "utilisation_of_measured_rate", "memory_peak_gib", "tflops", "us_per_node", "us_per_product", "steps_per_s",
    "cosine_mean", "cosine_min", "gate_passed", "off_eager",
    "refreshes_over_limit", "skipped_ticks", "allocations", "chunk_slowed_by", "denoise_gflop", "refused", "graph",
)  # fmt: skip


def summary(outcomes: Sequence[Outcome]) -> str:
    """Table of all sections: p50, p99 and maximum of the first timing, and the floor recorded with it."""
    rows = [["job", "section", "figure", "p50 ms", "p99", "max", "floor", "x floor"]]
    for outcome in outcomes:
        record = outcome.record
        if record is None or record.status != "ok":
            rows.append([outcome.job.name, record.status if record else "not run", outcome.note[:60]])
        for name, section in (record.sections if record else {}).items():
            rows.append([outcome.job.name, name, *_figures(section)])
    return table(rows)


def _figures(section: Section) -> list[str]:
    main = [key for key in _MAIN if key in section.figures][:2]
    shown = "  ".join(f"{key} {_short(section.figures[key])}" for key in main)
    timing = next(iter(section.timings.values()), None)
    if timing is None:
        return [shown]
    row = [shown, f"{timing.p50_ms:.3f}", f"{timing.p99_ms:.3f}", f"{timing.max_ms:.3f}"]
    if "floor_ms" not in section.figures:
        return row
    return [*row, f"{section.figures['floor_ms']:.3f}", f"{section.figures['x_floor']:.1f}"]


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:24]

"""The short table at the end of `make gpu`: one row per section, the figure that matters first."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.floors import RELEASED_CHUNK, RELEASED_PREFILL
from benchmarks.gpu.runner import Outcome
from benchmarks.results import Section
from edgewam.profiles.device import Device
from edgewam.profiles.report import table
from edgewam.profiles.roofline import roofline

_MAIN = ("bandwidth_gb_s", "tflops", "us_per_node", "us_per_product", "steps_per_s", "denoise_gflop", "refused")


def summary(outcomes: Sequence[Outcome], device: Device | None) -> str:
    """Table of all sections, p50 and p99 of the first timing, and the floor on this card where the plan has one."""
    rows = [["job", "section", "figure", "p50 ms", "p99", "floor", "x floor"]]
    for outcome in outcomes:
        record = outcome.record
        if record is None or record.status != "ok":
            rows.append([outcome.job.name, record.status if record else "not run", outcome.note[:60]])
        for name, section in (record.sections if record else {}).items():
            rows.append([outcome.job.name, name, *_figures(outcome.job.name, name, section, device)])
    return table(rows)


def _figures(job: str, name: str, section: Section, device: Device | None) -> list[str]:
    main = [key for key in _MAIN if key in section.figures][:2]
    shown = "  ".join(f"{key} {_short(section.figures[key])}" for key in main)
    timing = next(iter(section.timings.values()), None)
    if timing is None:
        return [shown]
    row = [shown, f"{timing.p50_ms:.3f}", f"{timing.p99_ms:.3f}"]
    floor = _floor_ms(job, name, section, device)
    return row if floor is None else [*row, f"{floor:.3f}", f"{timing.p50_ms / floor:.1f}"]


def _floor_ms(job: str, name: str, section: Section, device: Device | None) -> float | None:
    if job != "upstream_eager" or device is None or name == "model":
        return None
    if name == "prefill":
        return roofline(RELEASED_PREFILL, device).total_ms
    return roofline(RELEASED_CHUNK, device, "bf16", {"denoise": section.contract.steps}).total_ms


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:40]

"""How `--dry-run` shows a plan: every step with inputs, outputs, work, time, memory and disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewam.cli._output import emit, say, table

if TYPE_CHECKING:
    from edgewam.core.estimate import StepPlan

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan with time, memory and disk that it needs, and write nothing.")
]


def show_plan(steps: Sequence[StepPlan], as_json: bool, further: dict[str, Any] | None = None) -> None:
    """The plan on stderr and, when asked for, as JSON on stdout with `further` entries."""
    from edgewam.core.estimate import Totals, plan_json

    rows = [
        [
            step.name, step.settled or step.work, "-" if step.settled else spell(step.duration.seconds),
            megabytes(step.peak_memory_bytes), megabytes(step.disk_bytes + step.disk_extra),
        ]
        for step in steps
    ]  # fmt: skip
    table("Plan (estimates)", ["step", "work", "time", "memory", "disk"], rows)
    for step in steps:
        say(f"{step.name}: {', '.join(step.inputs) or 'nothing'} -> {', '.join(step.outputs)}")
        if step.settled:
            continue
        say(f"  time: {step.duration.source}")
        if step.memory:
            say(f"  memory, {step.peak_moment}: {_parts(step.memory[step.peak_moment])}")
        if step.disk or step.disk_extra:
            extra = {"meanwhile": step.disk_extra} if step.disk_extra else {}
            say(f"  disk: {_parts({**step.disk, **extra})}")
        for note in step.notes:
            say(f"  {note}")
    total = Totals.of(steps)
    say(
        f"In all: {spell(total.seconds)}, {megabytes(total.peak_memory_bytes)} of memory, "
        f"{megabytes(total.disk_bytes)} of disk ({megabytes(total.peak_disk_bytes)} at most on the way). Nothing was written."
    )
    emit({**plan_json(steps), **(further or {})}, as_json)


def spell(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return "unknown"
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.{0 if size >= 1e8 else 1}f} MB"


def _parts(parts: Any) -> str:
    return ", ".join(f"{name} {megabytes(size)}" for name, size in parts.items() if size)

"""`edgewam shrink`: distil, quantise, compile, validate and profile in one go; run again to continue where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewam.cli._device import Device
from edgewam.cli._output import Json, emit, say, table
from edgewam.cli._plan import DryRun, megabytes, show_plan, spell
from edgewam.core.errors import EdgewamError

if TYPE_CHECKING:
    from edgewam.recipes.shrink import Shrink


def command(
    checkpoint: Annotated[Path, typer.Argument(help="Policy directory (a teacher), or a student: then distilling is skipped.")],
    target: Annotated[str, typer.Option(help="What to make: cpu, cpu-int8, torch.")],
    out: Annotated[Path, typer.Option(help="Bundle directory to write; intermediate artifacts are in OUT.shrink.")],
    dataset: Annotated[
        Path | None, typer.Option(help="Recorded situations: to distil in, to calibrate on, and to judge by.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Action sampler steps; by default 2, or a student's own.", min=1)] = None,
    minutes: Annotated[float | None, typer.Option(help="Distilling time; by default the recipe's.", min=0.01)] = None,
    batches: Annotated[
        int | None, typer.Option(help="Teacher trajectory batches to cache; by default the recipe's.", min=1)
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of the gates; each takes 8 pairs of noise.", min=1)] = 16,
    n: Annotated[int, typer.Option("-n", help="Timed runs of each figure.", min=1)] = 200,
    threads: Annotated[int, typer.Option(help="Compute threads.", min=1)] = 2,
    device: Device = "cpu",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Walk from a trained policy to the bundle that goes to the robot. Safe to interrupt; the same command continues."""
    from edgewam.recipes.shrink import plan_shrink, shrink
    from edgewam.recipes.shrink_targets import target_named

    chosen = target_named(target)
    if dataset is None:
        raise EdgewamError(
            "Shrinking needs recorded situations: to distil in, to calibrate on, and to judge the bundle by. Give the dataset "
            f"that the policy was trained on with --dataset, or record a few episodes: edgewam collect {out.parent / 'dataset'} "
            "--episodes 20"
        )
    plan = plan_shrink(
        checkpoint, chosen, out, dataset, num_action_steps=steps, minutes=minutes, batches=batches, threads=threads,
        device=device, num_frames=frames, num_timed=n,
    )  # fmt: skip
    for name, why in plan.skipped.items():
        say(f"No {name}: {why}.")
    if dry_run:
        return _show(plan, as_json)
    with _bars() as report:
        result = shrink(plan, report)
    _won(result)
    emit(result, as_json)


def _show(plan: Shrink, as_json: bool) -> None:
    from edgewam.recipes.shrink_estimate import estimate_shrink

    steps, reasons = estimate_shrink(plan)
    for name, why in reasons.items():
        say(f"{name}: {why or 'done before'}")
    show_plan(steps, as_json, {"target": plan.target.to_json(), "work": str(plan.work), "skipped": plan.skipped, "why": reasons})


@contextmanager
def _bars() -> Iterator[Callable[..., None]]:
    """Two bars on stderr: the step, and the whole road with the time left; a line for every step that begins."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
    begun: list[int] = []
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=2) as bars:
        road, inner = bars.add_task("shrink", total=1, note=""), bars.add_task("", total=1, note="")

        def report(step: Any, number: int, count: int, fraction: float, seconds_left: float, note: str) -> None:
            if number not in begun:
                begun.append(number)
                say(f"[{number + 1}/{count}] {step.name}: {note} -> {step.out}")
                bars.reset(inner)
            bars.update(road, completed=(number + fraction) / count, note=f"about {spell(seconds_left)} left")
            bars.update(inner, description=step.name, completed=fraction, note=note)

        yield report


def _won(result: dict[str, Any]) -> None:
    before, after, disk = result["before"], result["after"], result["disk_bytes"]
    rows = [
        ["engine", before["backend"], after["backend"]],
        ["weights in memory", megabytes(before["weight_bytes"]), megabytes(after["weight_bytes"])],
        ["on disk", megabytes(disk["before"]), megabytes(disk["after"])],
        ["action steps", str(before["num_action_steps"]), str(after["num_action_steps"])],
        ["L_chunk p50", *(f"{side['L_chunk']['p50_ms']:.2f} ms" for side in (before, after))],
        ["L_chunk p99", *(f"{side['L_chunk']['p99_ms']:.2f} ms" for side in (before, after))],
    ]
    table("Won, both sides timed in turns in one process", ["", "checkpoint", "bundle"], rows)
    say(f"A chunk is {result['speedup']:.1f} times faster.")
    for side, judged in result["excess_error"].items():
        if judged:
            say(
                f"Excess error ratio against the {side}: median {judged['median']:.3g} (limit {judged['limits']['median']:g}), "
                f"p99 {judged['p99']:.3g} (limit {judged['limits']['p99']:g}) over {judged['num_frames']} frames."
            )
    say(f"Bundle {result['bundle']}, digest {result['digest'][:12]}. Next: edgewam run {result['bundle']}")

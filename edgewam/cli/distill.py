"""`edgewam distill`: fewer sampler steps for the same actions; run again to continue where it stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from edgewam.cli import _full_size
from edgewam.cli._device import Device
from edgewam.cli._full_size import NumRanks, On, RecipeName, Text, Workers
from edgewam.cli._output import Json, emit, say, table
from edgewam.cli._plan import DryRun, show_plan
from edgewam.core.errors import EdgewamError


def command(
    teacher: Annotated[Path, typer.Argument(help="Policy directory that `train` wrote.")],
    dataset: Annotated[Path, typer.Argument(help="Dataset that gives the situations; its actions are not used.")],
    out: Annotated[Path, typer.Argument(help="Student directory to write; the running state is OUT.training.")],
    method: Annotated[str, typer.Option(help="Distiller plugin.")] = "ode",
    recipe: RecipeName = "small",
    text: Text = None,
    init_from: Annotated[Path | None, typer.Option(help="Start from this student; but for --released, sharpen it.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Training time; by default the recipe's.", min=0.01)] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps instead of minutes.", min=1)] = None,
    batches: Annotated[
        int | None, typer.Option(help="Teacher trajectory batches to cache; by default the recipe's.", min=1)
    ] = None,
    released: Annotated[
        bool, typer.Option(help="As in the released run: jumps from 16 teacher steps, squared distance, no schedule of its own.")
    ] = False,
    student_steps: Annotated[
        int | None, typer.Option(help="Sampler steps that the student shall take; by default the recipe's, 2.", min=1)
    ] = None,
    max_prefix: Annotated[
        int, typer.Option(help="Rows of a chunk that may be given, at most what the teacher was trained with; 0: none.", min=0)
    ] = 0,
    workers: Workers = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default PyTorch's choice.", min=1)] = None,
    device: Device = "cpu",
    dry_run: DryRun = False,
    on: On = None,
    ranks: NumRanks = None,
    as_json: Json = False,
) -> None:
    """Distil the action sampler from 10 to 2 (and 1) steps on cached teacher trajectories."""
    from edgewam.core import plugins

    distiller = plugins.load("distiller", method)
    limit = {"minutes": minutes, "steps": steps} if minutes or steps else {}
    if recipe != "small":
        if method != "ode" or released:
            raise EdgewamError("A full-size recipe is for the method ode, and its own way already; --released is for small.")
        config = _full_size.distillation(
            recipe, teacher, dataset, out, steps=steps, batches=batches, text=text, init_from=init_from, workers=workers,
            device=device, plan=_full_size.Plan(dry_run, on, ranks), as_json=as_json,
        )  # fmt: skip
        if config is None:
            return
        config = replace(config, loop=replace(config.loop, minutes=minutes, threads=threads))
    else:
        if on or ranks:
            raise EdgewamError("--on and --ranks plan a full-size recipe; the plan of small is timed on this machine.")
        config = replace(_small(distiller, teacher, dataset, out, init_from, released, batches), text=text)
        config = replace(config, loop=replace(config.loop, threads=threads, device=device, **limit))
    config = replace(config, trajectories=replace(config.trajectories, max_prefix=max_prefix))
    config = replace(config, num_action_steps=student_steps or config.num_action_steps)
    if dry_run:
        return show_plan(distiller.estimate(config, out), as_json)
    with _full_size.talking(f"distill {method}") as (update, report):
        measured = distiller.distill(config, out, progress=update, report=report)
    if not _full_size.is_main_rank():
        return
    rms = measured["rms"]
    rows = [[n, rms[f"undistilled_{n}_to_10_rad"], rms[f"student_{n}_to_10_rad"]] for n in measured["sampler_steps"]]
    table("RMS distance to the teacher's 10 steps, same noise, rad", ["steps", "undistilled", "student"], rows)
    say(f"Wrote {out}.")
    emit(measured, as_json)


def _small(
    distiller: Any, teacher: Path, dataset: Path, out: Path, init_from: Path | None, released: bool, batches: int | None
) -> Any:
    """The recipe of `small`, or with `released` the plain way of the released run at its size."""
    from edgewam.recipes.small import small_cpu

    small = small_cpu(out.parent)
    config = small.sharpening if init_from and not released else small.distillation
    config = replace(config, teacher=teacher, dataset=dataset, latents=None, init_from=init_from)
    if released:
        plain = distiller.Config(teacher=teacher, dataset=dataset, init_from=init_from)
        grid = replace(plain.trajectories, num_batches=config.trajectories.num_batches)
        config = replace(plain, trajectories=grid, loop=config.loop, weights_dtype=config.weights_dtype)
    if batches is not None:
        grid = config.trajectories
        focused = grid.focused * batches // grid.num_batches
        config = replace(config, trajectories=replace(grid, num_batches=batches, focused=focused))
    return config

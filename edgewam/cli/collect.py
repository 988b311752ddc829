"""`edgewam collect`: record demonstrations in physics as a LeRobot v3.0 dataset; run again to continue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewam.cli._output import Json, emit, progress, say
from edgewam.cli._robot import Task
from edgewam.cli._shipped import FACTORY


def command(
    out: Annotated[Path, typer.Argument(help="Dataset directory to write.")],
    episodes: Annotated[int, typer.Option(help="Successful demonstrations to keep.", min=1)] = 400,
    first_seed: Annotated[int, typer.Option(help="Seeds are tried in order from here.", min=0)] = 300_001,
    style: Annotated[
        str | None, typer.Option(help="plain, or multimodal: the expert varies how and when. By default the task's own.")
    ] = None,
    robot: Annotated[str, typer.Option(help="Robot whose demonstrator records.")] = "aloha_sim",
    task: Task = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="Bundle that acts in the expert's place; every episode is kept. For `distill`; `train` refuses it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Record demonstrations (LeRobot v3.0: parquet and mp4). Safe to interrupt; the same command continues."""
    from edgewam.core.artifacts import read_manifest
    from edgewam.data.collect import CollectProgress, PolicySource, collect

    source = None
    if policy is not None:
        digest = read_manifest(policy, kind="bundle").digest
        source = PolicySource(FACTORY, {"bundle": str(policy), "threads": 1}, digest)

    with progress("collect") as update:

        def report(state: CollectProgress) -> None:
            update(state.num_kept, state.num_wanted, note=f"{state.num_dropped} unsuccessful dropped")

        result = collect(out, episodes, first_seed, style=style, robot=robot, task=task, policy=source, progress=report)
    say(
        f"{result.num_kept} episodes of {result.task} ({result.style}) in {result.path} "
        f"({result.num_recorded_now} now, {result.num_dropped} dropped)."
    )
    emit(
        {
            "path": str(result.path),
            "task": result.task,
            "style": result.style,
            "num_episodes": result.num_kept,
            "num_dropped": result.num_dropped,
            "num_recorded_now": result.num_recorded_now,
            "elapsed_s": result.elapsed_s,
        },
        as_json,
    )

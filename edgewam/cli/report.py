"""`edgewam report`: one self-contained HTML page about a bundle, every number of it from this run or labelled as shipped."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

import edgewam
from edgewam.cli._output import Json, emit, say
from edgewam.cli._robot import Task
from edgewam.cli._shipped import SMALL, or_shipped


def command(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle directory; by default the shipped one.")] = None,
    results: Annotated[Path | None, typer.Option(help="Folder with what `evaluate` and `run` wrote with --json.")] = None,
    out: Annotated[Path, typer.Option(help="The page to write; an older one is replaced.")] = Path("report.html"),
    policy: Annotated[
        Path | None, typer.Option(help="The policy the bundle came from, when it is not beside the bundle.")
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="Frames for parity; by default an episode in the simulator.")] = None,
    task: Task = None,
    seed: Annotated[int, typer.Option(help="Scene and noise of the episode that is filmed.", min=0)] = 0,
    frames: Annotated[int, typer.Option(help="Frames of the parity gates.", min=1)] = 4,
    n: Annotated[int, typer.Option("-n", help="Timed calls of each figure.", min=5)] = 100,
    threads: Annotated[int, typer.Option(help="Compute threads.", min=1)] = 2,
    as_json: Json = False,
) -> None:
    """Show a bundle on one page: the road, latency, parity, success, action error, control loop, film, commands."""
    from edgewam.core.artifacts import replaced_file
    from edgewam.profiles.html.page import page
    from edgewam.recipes.report import ReportSettings, gather

    settings = ReportSettings(
        bundle=or_shipped(bundle, "bundle"), policy=policy, dataset=dataset, results=results, shipped=SMALL,
        committed=Path(edgewam.__file__).parents[1] / "benchmarks/results", task=task, seed=seed, frames=frames, n=n,
        threads=threads, command=("edgewam", *sys.argv[1:]),
    )  # fmt: skip
    data = gather(settings, report=lambda text: say(f"  {text}"))
    with replaced_file(out) as temporary:
        temporary.write_text(page(data), encoding="utf-8")
    say(f"Wrote {out} ({out.stat().st_size / 1e6:.2f} MB). Open it in any browser: {shlex.quote(out.resolve().as_uri())}")
    data["film"] = {key: value for key, value in data["film"].items() if key not in ("film", "still")}
    emit({"out": str(out), **data}, as_json)

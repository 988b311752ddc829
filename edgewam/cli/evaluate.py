"""`edgewam evaluate`: success of a bundle over paired seeds in lockstep, or the comparison of two such results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewam.cli._output import Json, emit, progress, say, table
from edgewam.cli._robot import Task
from edgewam.cli._shipped import FACTORY, or_shipped

if TYPE_CHECKING:
    from edgewam.robot_bridge.evaluation.evaluate import EvaluationReport
    from edgewam.robot_bridge.evaluation.lockstep import EpisodeResult


def command(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle directory; by default the shipped one.")] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds.", min=1)] = 50,
    first_seed: Annotated[int, typer.Option(help="The first seed; demonstrations use seeds from 300001.", min=0)] = 0,
    robot: Annotated[str, typer.Option(help="A simulator's plugin name, or a dotted module.")] = "aloha_sim",
    task: Task = None,
    latency_ticks: Annotated[int, typer.Option(help="Declared inference latency in control ticks.", min=0)] = 0,
    execute_ticks: Annotated[
        int | None, typer.Option(help="Actions executed per chunk; by default what the bundle is meant for, else 16.", min=1)
    ] = None,
    schedule: Annotated[str, typer.Option(help="How a chunk takes over: replace, ensemble, crossfade, rtc.")] = "replace",
    refresh_ticks: Annotated[
        int | None, typer.Option(help="Control ticks between refreshes of the context; by default the bundle's.", min=1)
    ] = None,
    ablate: Annotated[list[str] | None, typer.Option(help="Do without: images (black), memory, router.")] = None,
    results: Annotated[Path | None, typer.Option(help="JSONL file that keeps every episode; the same command continues.")] = None,
    compare: Annotated[tuple[Path, Path] | None, typer.Option(help="Compare two results files instead of playing.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that play.", min=1)] = 2,
    as_json: Json = False,
) -> None:
    """Judge a policy in closed loop: the simulator waits, the seed fixes scene and noise."""
    if compare:
        return _compare(*compare, as_json)
    from edgewam.core.artifacts import read_manifest
    from edgewam.robot_bridge.evaluation.evaluate import evaluate
    from edgewam.robot_bridge.evaluation.lockstep import LockstepSettings
    from edgewam.robot_bridge.robot import with_task

    spec, _ = with_task(robot, task)
    path = or_shipped(bundle, "bundle")
    manifest = read_manifest(path, kind="bundle", verify=False)
    execute = execute_ticks or int(manifest.config["host"].get("execute_steps", 16))
    settings = LockstepSettings(spec.episode_ticks, latency_ticks, execute, schedule)
    with progress("evaluate") as update:
        won = 0

        def report(episode: EpisodeResult, done: int, total: int) -> None:
            nonlocal won
            won += episode.strict_success
            update(done, total, note=f"{won} strict in this run")

        result = evaluate(
            FACTORY,
            {"bundle": str(path), "threads": 1} | ({"refresh_ticks": refresh_ticks} if refresh_ticks else {}),
            range(first_seed, first_seed + seeds),
            robot=robot,
            task=task,
            settings=settings,
            ablate=ablate or (),
            identity={"bundle": manifest.digest},
            results=results,
            workers=workers,
            on_episode=report,
        )
    show(str(path), result)
    emit(result.to_json(), as_json)


def show(title: str, result: EvaluationReport) -> None:
    """Rates with their intervals, on stderr."""
    for name, rate in (("strict success", result.strict), ("success", result.success)):
        interval = f"95 % interval {rate.wilson.low:.1%} to {rate.wilson.high:.1%}"
        say(f"{title}: {name} {rate.successes}/{rate.n} = {rate.rate:.1%} ({interval})")
    if result.median_strict_time_s is not None:
        say(f"{title}: median time to strict success {result.median_strict_time_s:.2f} s, mean reward {result.mean_reward:.2f}")
    if result.real_time_factor is not None:
        say(f"{title}: played {result.real_time_factor:.1f} times as fast as real time")


def _compare(first: Path, second: Path, as_json: bool) -> None:
    from edgewam.robot_bridge.evaluation.compare import compare

    result = compare(first, second)
    header = ["policy", "strict", "95 % interval", "median tick of it", "jerk at seams", "within chunks"]
    rows = []
    for path, side in ((first, result.first), (second, result.second)):
        rate, numbers = side.strict, (side.median_strict_tick, side.seam_jerk, side.inner_jerk)
        interval = f"{rate.wilson.low:.1%} to {rate.wilson.high:.1%}"
        rows.append([path.name, f"{rate.successes}/{rate.n}", interval, *("-" if n is None else n for n in numbers)])
    table("On the common seeds (jerk: third difference of commands, in units of the velocity limit per tick)", header, rows)
    verdict = "non-inferior" if result.is_non_inferior else "NOT shown to be non-inferior"
    say(
        f"'{first}' against '{second}' on {result.n} paired seeds: difference {result.difference:+.1%}, "
        f"one-sided 95 % bound {result.lower_bound:+.1%} against a margin of {-result.margin:.0%}: {verdict}. "
        f"McNemar p = {result.p_value:.3f}."
    )
    emit(result.to_json(), as_json)
    if not result.is_non_inferior:
        raise typer.Exit(1)

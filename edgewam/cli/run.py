"""`edgewam run`: drive a robot in real time with a bundle, and count what happened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewam.cli._output import Json, emit, progress, table
from edgewam.cli._robot import Task
from edgewam.cli._shipped import FACTORY, or_shipped

if TYPE_CHECKING:
    from edgewam.robot_bridge.report import RunReport


def command(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle directory; by default the shipped one.")] = None,
    robot: Annotated[str, typer.Option(help="Robot plugin name, or a dotted module.")] = "aloha_sim",
    task: Task = None,
    seconds: Annotated[float, typer.Option(help="How long to control.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Scene and noise of the first episode; the next follow by one.", min=0)] = 0,
    prompt: Annotated[str | None, typer.Option(help="Instruction; by default the task's own.")] = None,
    threads: Annotated[int, typer.Option(help="Compute threads of the engine; the simulator draws on the others.", min=1)] = 1,
    replan_ticks: Annotated[int, typer.Option(help="Ask for a new chunk once per so many control ticks.", min=1)] = 8,
    as_json: Json = False,
) -> None:
    """Drive a robot in real time: io, driver, camera and engine processes over shared memory."""
    from edgewam.core.artifacts import read_manifest
    from edgewam.robot_bridge.robot import with_task
    from edgewam.robot_bridge.run import Progress, RunSettings, run

    spec, _ = with_task(robot, task)
    path = or_shipped(bundle, "bundle")
    digest = read_manifest(path, kind="bundle", verify=False).digest  # the record names what ran
    arguments = {"bundle": str(path), "threads": threads}
    settings = RunSettings(replan_ticks=replan_ticks, episode_ticks=spec.episode_ticks)
    with progress("run") as update:

        def report(state: Progress) -> None:
            update(state.tick, state.num_ticks, note=f"{state.mode}, {state.episodes} episodes")

        result = run(
            FACTORY, arguments, robot, seconds, task=task, prompt=prompt, seed=seed, settings=settings, on_progress=report
        )
    show(result)
    emit({"bundle": digest, **result.to_json()}, as_json)
    if not result.is_complete or result.violations or result.violations_in_log:
        raise typer.Exit(1)


def show(result: RunReport) -> None:
    """The counters that matter, as a table on stderr."""
    age, lateness, engine = result.observation_to_command_ms, result.lateness_ms, result.engine_ms
    rows = [
        ["control_hz", result.control_hz, "commands sent per second"],
        ["chunk_hz", result.chunk_hz, "fresh chunks applied per second"],
        ["ticks", result.ticks, f"missed {result.missed} ({result.missed_percent:.2f} %), late {result.late}"],
        ["held", result.held, f"{result.hold_percent:.2f} % of the ticks after READY {result.held_by_cause or ''}"],
        ["rejected", result.rejected, f"{result.rejected_by_cause or 'chunks'}"],
        ["clamped", result.clamped, f"{result.clamped_by_joint or 'commands'}"],
        ["violations", result.violations + result.violations_in_log, "limits broken by a command that was sent"],
        ["observation to command", age.p50 or 0.0, f"ms p50; p99 {age.p99}, max {age.max}"],
        ["tick lateness", lateness.p50 or 0.0, f"ms p50; p99 {lateness.p99}, max {lateness.max}"],
        ["engine", engine.p50 or 0.0, f"ms per answer p50; p99 {engine.p99}, max {engine.max}"],
        ["strict successes", result.num_strict_successes, f"of {len(result.episodes)} finished episodes"],
    ]
    table(f"{result.robot}, {result.seconds:.0f} s in real time", ["counter", "value", "detail"], rows)

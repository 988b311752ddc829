"""`edgewam run`: drive a robot in real time with a bundle, or with a policy on another machine, and count what happened."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewam.cli._output import Json, emit, progress, say
from edgewam.cli._pairs import pairs
from edgewam.cli._robot import Task
from edgewam.cli._run_table import show
from edgewam.cli._shipped import FACTORY, or_shipped
from edgewam.core.errors import EdgewamError

if TYPE_CHECKING:
    from edgewam.core.artifacts import Manifest
    from edgewam.robot_bridge.run import Progress

REMOTE_FACTORY = "edgewam.robot_bridge.remote.open_policy"
_AUTO = "auto"


def command(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle directory; by default the shipped one.")] = None,
    robot: Annotated[str, typer.Option(help="Robot plugin name, or a dotted module such as my_package.my_arm.")] = "aloha_sim",
    task: Task = None,
    seconds: Annotated[float, typer.Option(help="How long to control; 0: until Ctrl-C.", min=0)] = 60.0,
    seed: Annotated[int, typer.Option(help="Scene and noise of the first episode; the next follow by one.", min=0)] = 0,
    prompt: Annotated[str | None, typer.Option(help="Instruction; by default the task's own.")] = None,
    threads: Annotated[int, typer.Option(help="Compute threads of the engine; the simulator draws on the others.", min=1)] = 1,
    replan_ticks: Annotated[
        int | None, typer.Option(help="Control ticks from one chunk to the next; by default 8 of the policy's ticks.", min=1)
    ] = None,
    schedule: Annotated[str, typer.Option(help="How a chunk takes over: replace, ensemble, crossfade or rtc.")] = "replace",
    refresh_ticks: Annotated[
        int | None, typer.Option(help="Policy ticks between planner refreshes; by default the bundle's own number.", min=1)
    ] = None,
    planner: Annotated[str, typer.Option(help="process, engine, or auto: a process when the bundle runs on the CPU.")] = _AUTO,
    control_hz: Annotated[float | None, typer.Option(help="Command a simulator at a multiple of the policy's rate.")] = None,
    arm: Annotated[
        bool | None,
        typer.Option("--arm/--no-arm", help="Let the arm move at once; by default only a simulator may, see edgewam control."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What edgewam control calls this run; by default its robot's name.")] = None,
    robot_option: Annotated[list[str] | None, typer.Option(help="KEY=VALUE for the robot's make(); may be repeated.")] = None,
    record: Annotated[Path | None, typer.Option(help="Flight recording to write, an MCAP file.")] = None,
    view: Annotated[
        int | None, typer.Option(help="Port of a live page on this machine; 0: any free one.", min=0, max=65535)
    ] = None,
    remote: Annotated[str | None, typer.Option(help="HOST:PORT of an `edgewam serve`, instead of a bundle.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the token of --remote.")] = None,
    as_json: Json = False,
) -> None:
    """Drive a robot in real time: every part in a process of its own, over shared memory.  Ctrl-C brakes and reports."""
    from edgewam.robot_bridge.robot import with_task
    from edgewam.robot_bridge.run import Interrupted, RunSettings, run, run_name

    spec, _ = with_task(robot, task)
    options = {key: _plain(value) for key, value in pairs("--robot-option", robot_option, "port=/dev/ttyUSB0").items()}
    source: dict[str, Any]
    if remote is not None:
        factory, arguments, source = REMOTE_FACTORY, _remote(remote, bundle, token_file), {"remote": remote}
        planner = "engine" if planner == _AUTO else planner
    else:
        from edgewam.core.artifacts import read_manifest

        path = or_shipped(bundle, "bundle")
        manifest = read_manifest(path, kind="bundle", verify=False)
        # the record names what ran
        factory, arguments, source = FACTORY, {"bundle": str(path), "threads": threads}, {"bundle": manifest.digest}
        if planner == _AUTO:
            planner = choose_planner(manifest)
            say(f"Planner: {'a process of its own' if planner == 'process' else 'in the engine'} (--planner {planner}).")
    times = max(1, round((control_hz or spec.control_hz) / spec.control_hz))
    settings = RunSettings(
        replan_ticks=replan_ticks or RunSettings.replan_ticks * times,
        episode_ticks=spec.episode_ticks * times,
        schedule=schedule,
        refresh_ticks=refresh_ticks,
        planner=planner,
        record=None if record is None else str(record),
        view_port=view,
    )
    name = name or run_name(robot)
    say(f"Run '{name}': edgewam control stop --run {name} brakes it from another terminal.")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # brakes and reports like Ctrl-C
    with progress("run") as update:
        shown: set[str] = set()

        def report(state: Progress) -> None:
            if state.view_port and "view" not in shown:
                shown.add("view")
                say(f"Live page: http://127.0.0.1:{state.view_port}")
            if not state.is_armed and "arm" not in shown:
                shown.add("arm")
                say(f"Not armed. When nobody is in reach of the arm: edgewam control arm --run {name}")
            update(state.tick, state.num_ticks if seconds else max(state.tick, 1), note=_note(state))

        try:
            result = run(
                factory, arguments, robot, seconds, task=task, prompt=prompt, seed=seed, settings=settings, control_hz=control_hz,
                robot_options=options, arm=arm, name=name, on_progress=report,
            )  # fmt: skip
        except Interrupted as interrupted:
            result = interrupted.report
        finally:
            signal.signal(signal.SIGTERM, before)
    show(result)
    emit({**source, **result.to_json()}, as_json)
    if not result.is_complete or result.violations or result.violations_in_log:
        raise typer.Exit(1)


def choose_planner(manifest: Manifest) -> str:
    """A process of its own for a bundle that plans on the CPU; a GPU refreshes beside its chunks, in the engine."""
    programs = manifest.config.get("programs", {}).get("programs", {})
    return "process" if "plan" in programs and not manifest.config.get("device") else "engine"


def _note(state: Progress) -> str:
    mode = state.mode if state.cause == "none" else f"{state.mode} {state.cause}"
    return f"{mode}, {state.episodes} episodes" + ("" if state.is_armed else ", not armed")


def _plain(text: str) -> Any:
    """A value that is JSON, such as a number, is taken as that."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _remote(remote: str, bundle: Path | None, token_file: Path | None) -> dict[str, Any]:
    """Arguments of the remote policy."""
    if bundle is not None:
        raise EdgewamError(f"The policy is at {remote}: leave the bundle '{bundle}' out, or leave --remote out.")
    host, _, port = remote.rpartition(":")
    if not host or not port.isdigit():
        raise EdgewamError(f"--remote takes HOST:PORT, such as 127.0.0.1:8000; got '{remote}'.")
    return {"host": host.strip("[]"), "port": int(port), "token_file": None if token_file is None else str(token_file)}

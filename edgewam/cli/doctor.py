"""`edgewam doctor`: what this machine is, what works on it and what does not, and the command that mends each problem."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgewam.cli._output import Json, emit, say
from edgewam.cli._shipped import or_shipped


def command(
    bundle: Annotated[Path | None, typer.Argument(help="The bundle that is to run here; by default the shipped one.")] = None,
    limit: Annotated[float, typer.Option(help="Seconds that the trials may take; raise it on a cold disk.", min=0.1)] = 4.0,
    as_json: Json = False,
) -> None:
    """Examine this machine: nothing is changed. Exit status 1 when the bundle cannot run here."""
    from edgewam.recipes.doctor import examine

    result = examine(or_shipped(bundle, "bundle"), limit)
    show(result)
    emit(result, as_json)
    if not result["ok"]:
        raise typer.Exit(1)


def show(found: dict[str, Any]) -> None:
    """Every fact and every problem, on stderr."""
    machine, host = found["machine"], found["host"]
    python, granted = found["python"], found["real_time"]
    for name, text in (
        ("processor", f"{machine['cpu']}, {machine['num_cpus']} usable CPUs, governor {machine['governor'] or 'unknown'}"),
        ("instructions", " ".join(host["instruction_sets"]) or "unknown"),
        ("memory", f"{machine['memory_gb']} GB, {host['memory_available_gb']} GB free; /dev/shm {host['shared_memory_gb']} GB"),
        ("disk here", f"{host['disk_free_gb']} GB free"),
        ("system", f"{machine['system']}, {'container ' + host['container'] if host['container'] else 'no container found'}"),
        ("GPU", _gpu(found)),
        ("real time", ", ".join(f"{name} {value}" for name, value in granted.items())),
        ("kernel", f"{'PREEMPT_RT' if host['kernel_real_time'] else 'not PREEMPT_RT'}, real-time share {host['rt_runtime']}"),
        ("python", f"{python['version']}, {python['prefix']}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in found["packages"].items() if name != "python")),
    ):
        say(f"  {name:<13} {text}")
    say("extras")
    for name, extra in found["extras"].items():
        _row(name, extra["installed"], f"lacks {', '.join(extra['missing'])}; {extra['command']}", extra["note"])
    say("engine libraries")
    for name, library in found["engine_libraries"].items():
        devices = ", ".join(library["devices"])
        _row(
            name,
            library["installed"],
            f"for {devices}. {library['how']}",
            f"{library['version'] or 'version unknown'}, for {devices}",
        )
    say("backends")
    for name, halves in found["backends"].items():
        for half, state in halves.items():
            _row(f"{name} {half}", state["ok"], state["reason"])
    say("drawing without a screen")
    for name, state in found["render"].items():
        _row(name, state["ok"], state["reason"].partition(". Install")[0])
    say("main job")
    _row("run the bundle", found["bundle"]["ok"], found["bundle"]["reason"], found["bundle"]["path"])
    problems = found["problems"]
    say(f"\n{len(problems) or 'No'} problem{'s' * (len(problems) != 1)} found in {found['seconds']} s.")
    for problem in problems:
        say(f"{'BLOCKS' if problem['blocks'] else 'costs'}: {problem['what']}: {problem['why']}")
        if problem["mend"]:
            say(f"   $ {problem['mend']}")
    say("This machine can run the bundle." if found["ok"] else "This machine cannot run the bundle yet; mend what BLOCKS.")


def _row(name: str, ok: bool | None, reason: str, note: str = "") -> None:
    verdict = "?" if ok is None else "yes" if ok else "no"
    say(f"  {name:<18} {verdict:<4} {note if ok else reason}".rstrip())


def _gpu(found: dict[str, Any]) -> str:
    gpu, host = found["machine"]["gpu"], found["host"]
    if gpu:
        return f"{gpu.get('name')}, {gpu.get('memory', '?')}, driver {gpu.get('driver', '?')}, {found['sm'] or 'no device file'}"
    if host["nvidia_models"]:
        return f"{', '.join(host['nvidia_models'])} (driver {host['nvidia_module']}), out of reach"
    return "none"

"""The examination behind `edgewam doctor`: facts of the machine and trials in child processes, gathered and judged."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewam.profiles.machine import Machine
    from edgewam.profiles.probe import Answer


def examine(bundle: Path, limit_s: float) -> dict[str, Any]:
    """Examine this machine; nothing is changed, no GPU is opened, and nothing heavy is imported into this process.

    Args:
        bundle: what is to run here.
        limit_s: seconds after which trials that have not answered are ended.  They all run at once.

    Returns:
        Plain JSON: ok, problems (worst first), machine, host, python, packages, extras, engine_libraries, backends, render,
        real_time, bundle.
    """
    from edgewam.core.artifacts import versions
    from edgewam.profiles import doctor, extras, known_bad
    from edgewam.profiles.machine import read_host, read_machine
    from edgewam.profiles.probe import run_probes
    from edgewam.profiles.versions import installed
    from edgewam.recipes.doctor_trials import RENDERERS, trials

    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:  # nvidia-smi may take its time meanwhile
        reading = pool.submit(read_machine, limit_s)
        answers = run_probes(trials(bundle), limit_s)
        machine = reading.result()
    host, needed = read_host(), extras.requirements()
    sm, libraries = _sm(machine), engine_libraries()
    drawing = {kind: answers[f"render {kind}"] for kind in RENDERERS}
    has_simulator = installed("mujoco") is not None
    problems = [
        *doctor.judge_python(),
        *doctor.judge_packages(needed),
        *doctor.judge_bundle(str(bundle), answers["bundle"]),
        *doctor.judge_records(answers["records"]),
        *doctor.judge_rendering(drawing, has_simulator, importlib.util.find_spec("gym_aloha") is not None),
        *doctor.judge_known_bad(known_bad.known_bad(sm)),
        *doctor.judge_engines(machine.gpu.get("name", ""), _engine_library(sm), libraries),
        *doctor.judge_host(machine, host, lambda package: installed(package) is not None),
        *doctor.judge_real_time(answers["real time"], host),
    ]
    problems.sort(key=lambda problem: not problem.blocks)
    return {
        "ok": not any(problem.blocks for problem in problems),
        "problems": [problem.to_json() for problem in problems],
        "machine": machine.to_json(),
        "host": host.to_json(),
        "sm": sm,
        "python": {"version": sys.version.split()[0], "executable": sys.executable, "prefix": sys.prefix},
        "packages": versions(),
        "extras": _extras(needed),
        "engine_libraries": libraries,
        "backends": _backends(answers),
        "render": {kind: {"ok": answer.ok, "reason": answer.reason} for kind, answer in drawing.items()},
        "real_time": answers["real time"].value or {"refused": answers["real time"].reason},
        "bundle": {"path": str(bundle), **answers["bundle"].to_json()},
        "seconds": round(time.monotonic() - began, 2),
    }


def _sm(machine: Machine) -> str | None:
    """Compute capability of the GPU, where a device file knows its name."""
    from edgewam.profiles.device import find_device

    device = find_device(machine.gpu["name"]) if machine.gpu else None
    return device.sm if device else None


def engine_libraries() -> dict[str, Any]:
    """Library -> {installed, version, how, devices}: whether it is found here, without importing it, and how to get it."""
    from edgewam.compile.tensorrt_targets import targets
    from edgewam.profiles.versions import installed
    from edgewam.runtime import cuda_api, tensorrt_api

    known = [target for target in targets().values() if target.sm]
    found: dict[str, Any] = {}
    for family, (module, how) in tensorrt_api.LIBRARIES.items():
        packages = (module.replace("_", "-"), "tensorrt-cu13", "tensorrt-cu12")[: 1 if family == "rtx" else 3]
        version = next(filter(None, map(installed, packages)), None)
        devices = [target.name for target in known if target.family == family]
        is_here = importlib.util.find_spec(module) is not None
        found[module] = {"installed": is_here, "version": version, "how": f"{how}.", "devices": devices}
    version = installed("cuda-bindings")
    how = f"Install it with: {cuda_api.INSTALL}"
    found["cuda-bindings"] = {
        "installed": version is not None,
        "version": version,
        "how": how,
        "devices": [target.name for target in known],
    }
    return found


def _engine_library(sm: str | None) -> str:
    """The library that serves a GPU, "" where no device file knows it."""
    from edgewam.compile.tensorrt_targets import targets

    return next((target.library for target in targets().values() if sm and target.sm == sm), "")


def _extras(needed: Any) -> dict[str, Any]:
    from edgewam.profiles import extras

    found: dict[str, Any] = {}
    for name in dict.fromkeys(item.extra for item in needed if item.extra):
        missing = [item.package for item in needed if item.extra == name and not item.is_met]
        found[name] = {
            "installed": not missing, "missing": missing, "command": extras.command(name), "note": extras.NOTES.get(name, ""),
        }  # fmt: skip
    return found


def _backends(answers: Mapping[str, Answer]) -> dict[str, Any]:
    """Backend -> {run, build}, each {ok, reason, command}; ok is None where the trial did not end in time."""
    from edgewam.core import plugins
    from edgewam.profiles.doctor import command_in
    from edgewam.recipes.doctor_trials import REFERENCE

    def row(answer: Answer, *keys: str) -> dict[str, Any]:
        value = answer.value if answer.ok else None
        for key in keys:
            value = value and value.get(key)
        if value is None:
            more = "; try again with: edgewam doctor --limit 30" if answer.timed_out else ""
            reason = (answer.reason or "no answer in time") + more
            return {"ok": None if answer.timed_out else False, "reason": reason, "command": ""}
        return {**value, "command": "" if value["ok"] else command_in(value["reason"], "")}

    runs, builds = plugins.names("backend_run"), plugins.names("backend_build")
    found: dict[str, Any] = {}
    for name in dict.fromkeys([*runs, *builds]):
        found[name] = {}
        if name in runs:
            found[name]["run"] = row(answers["torch"], "run") if name == REFERENCE else row(answers[f"run {name}"])
        if name in builds:
            found[name]["build"] = row(answers["torch"], "build", name)
    return found

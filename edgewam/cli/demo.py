"""`edgewam demo`: walk the whole road with the real commands on the policy that ships with edgewam.

Collecting, training and distilling run a short slice, starting from the shipped weights, and say so; everything else runs
in full on the shipped student, quantising with fewer frames.  Every figure is computed in this run or labelled as shipped.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from edgewam.cli._output import Json, emit, say, table
from edgewam.cli._shipped import shipped

TRAIN_MINUTES = 0.1  # a slice: enough to see the loss, not to learn from it


def command(
    out: Annotated[Path, typer.Option(help="Working directory; what is there from an earlier demo is replaced.")] = Path(
        "outputs/demo"
    ),
    seconds: Annotated[float, typer.Option(help="Length of the real-time run.")] = 15.0,
    seeds: Annotated[int, typer.Option(help="Episodes of the closed-loop evaluation.")] = 10,
    as_json: Json = False,
) -> None:
    """Walk the road from demonstrations to the report (four to five minutes on two cores)."""
    from edgewam.core.artifacts import read_manifest, write_json

    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    digests = {part: read_manifest(shipped(part)).digest for part in ("vae", "teacher", "student", "bundle")}
    dataset, bundle, int8 = out / "dataset", out / "bundle", out / "int8"
    teacher, student = str(shipped("teacher")), str(shipped("student"))
    slice_ = ["--minutes", str(TRAIN_MINUTES)]
    results: dict[str, Any] = {}

    def step(name: str, why: str, *arguments: str | Path, key: str = "") -> Any:
        words = [name, *map(str, arguments)]
        say(f"\n== {name}: {why}\n$ edgewam {shlex.join(words)}")
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "edgewam", *words, "--json"], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            say(f"edgewam demo stopped: '{name}' failed. Its message is above.")
            raise typer.Exit(done.returncode)
        record = json.loads(done.stdout)
        results[key or name] = record | {"demo_seconds": round(time.monotonic() - started, 1)}
        return record

    for name in ("policy", "student_slice"):  # a slice starts anew each time
        _remove(out / name, out / f"{name}.training")
    _remove(out / "results")
    (out / "results").mkdir()
    step("collect", "a slice: 3 demonstrations", dataset, "--episodes", "3", "--first-seed", "900001")
    step("train", "a slice, from the shipped teacher", dataset, out / "policy", "--init-from", teacher, *slice_)
    step(
        "distill", "a slice, from the shipped student", teacher, dataset, out / "student_slice",
        "--init-from", student, "--batches", "2", *slice_,
    )  # fmt: skip
    step("compile", "the shipped student, in full", student, bundle)
    step("validate", "the bundle against the eager student", bundle, student, dataset)
    step(
        "quantize", "INT8 where it is measured to be harmless, and faster or smaller", student, dataset, int8,
        "--episodes", "3", "--frames", "16",
    )  # fmt: skip
    step("compile", "the INT8 student", int8, out / "bundle_int8", key="compile_int8")
    profile = step("profile", "where the time goes", bundle, "-n", "100")
    both = ("--against", bundle, "-n", "60")
    beside = step("profile", "INT8 and float32 in turns", out / "bundle_int8", *both, key="profile_int8")
    judged = step("evaluate", "closed loop in lockstep", bundle, "--seeds", str(seeds), "--first-seed", "1000")
    run = step("run", "two arms in real time", bundle, "--seconds", str(seconds))
    for name, record in (("evaluate", judged), ("run", run)):
        write_json(out / "results" / f"{name}.json", record)
    page = out / "report.html"
    step("report", "all of it on one page", bundle, "--policy", student, "--results", out / "results", "-n", "50", "--out", page)
    _summary(digests, profile, beside, judged, run)
    elapsed = time.monotonic() - began
    say(f"\nThe whole road took {elapsed:.0f} s. Artifacts are in {out}; try: edgewam run {bundle} --seconds 60")
    say(f"Everything about the policy on one page: {shlex.quote(page.resolve().as_uri())}")
    emit({"seconds": round(elapsed, 1), "shipped": digests, "steps": results}, as_json)


def _remove(*paths: Path) -> None:
    import shutil

    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def _summary(digests: dict[str, str], profile: Any, beside: Any, judged: Any, run: Any) -> None:
    chunk = profile["L_chunk"]["total"]
    turns = next(row for row in beside["measured"] if row["what"] == "L_chunk")
    strict = judged["strict"]
    rows = [
        ["action chunk (image and state in, actions out)", f"{chunk['p50_ms']:.2f} ms p50, {chunk['p99_ms']:.2f} ms p99"],
        [
            "INT8 and float32 in turns",
            f"{turns['bundle']['p50_ms']:.2f} and {turns['against']['p50_ms']:.2f} ms p50 ({turns['times_as_fast']:.2f}x)",
        ],
        ["strict success in lockstep", f"{strict['successes']}/{strict['n']}"],
        ["control rate", f"{run['control_hz']:.2f} Hz, {run['missed']} ticks missed, {run['held']} held"],
        ["fresh chunks applied", f"{run['chunk_hz']:.1f} per second"],
        [
            "observation to command",
            f"{run['observation_to_command_ms']['p50']} ms p50, {run['observation_to_command_ms']['p99']} ms p99",
        ],
        ["limit violations", str(run["violations"] + run["violations_in_log"])],
        *[[f"{part} (shipped)", digest[:12]] for part, digest in digests.items()],
    ]
    table("Computed in this run, but for the shipped digests", ["what", "figure"], rows)

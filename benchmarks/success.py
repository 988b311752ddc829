"""Strict success of the shipped policy over held-out seeds: teacher, student, and the teacher with fewer steps undistilled.

    python3 -m benchmarks.success [--seeds 200] [--first-seed 1000] [--work outputs/success]

Every sampler is compiled from the shipped weights and played in lockstep on the same seeds (scene and noise), so that
results pair.  Blind, the student must fail.  One table, one JSON under benchmarks/results/<device>/; a run that was cut goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, now_utc, slug
from edgewam.cli._shipped import FACTORY, shipped
from edgewam.compile.compile import compile_bundle
from edgewam.core.artifacts import read_manifest, versions, write_json
from edgewam.core.errors import EdgewamError
from edgewam.profiles.machine import read_machine
from edgewam.profiles.report import table
from edgewam.recipes.deploy import compile_plan
from edgewam.robot_bridge.compare import compare
from edgewam.robot_bridge.evaluate import EvaluationReport, evaluate

GATE = 0.95  # strict success of teacher and student
BLIND_SEEDS = 20
# row -> (shipped part, sampler steps)
SAMPLERS = {
    "teacher, 10 steps": ("teacher", 10),
    "student, 2 steps": ("student", 2),
    "undistilled Euler, 2 steps": ("teacher", 2),
    "undistilled Euler, 1 step": ("teacher", 1),
}


def bundle_of(part: str, steps: int, work: Path) -> Path:
    """The shipped bundle, or one compiled from a shipped policy with another number of steps."""
    policy = read_manifest(shipped(part))
    if part == "student" and policy.digest in read_manifest(shipped("bundle")).parents.values():
        return shipped("bundle")
    out = work / f"{part}_{steps}"
    if not out.exists() or policy.digest not in read_manifest(out).parents.values():
        compile_bundle(compile_plan(shipped(part), num_action_steps=steps, threads=1), out)
    return out


def results_path(bundle: Path, name: str, work: Path) -> Path:
    """Where the episodes of a bundle are kept; another bundle has another file."""
    return work / f"{name}-{read_manifest(bundle, verify=False).digest[:8]}.jsonl"


def play(bundle: Path, seeds: range, path: Path, task: str | None = None, ablate: Sequence[str] = ()) -> EvaluationReport:
    """Evaluate one bundle, continuing its results file."""
    digest = read_manifest(bundle, verify=False).digest
    path.parent.mkdir(parents=True, exist_ok=True)
    return evaluate(
        FACTORY,
        {"bundle": str(bundle), "threads": 1},
        seeds,
        task=task,
        ablate=ablate,
        identity={"bundle": digest},
        results=path,
        on_episode=lambda episode, done, total: show(f"{path.stem} {done}/{total}", last=done == total),
    )


def show(text: str, last: bool) -> None:
    """One line that is rewritten on a terminal; in a log only its last state."""
    if sys.stderr.isatty():
        print(f"\r{text}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last:
        print(text, file=sys.stderr, flush=True)


def row(report: EvaluationReport) -> dict[str, Any]:
    """What the JSON keeps of an evaluation: rates with intervals, times, and the strict tick of every seed."""
    data = report.to_json()
    names = ("strict", "success", "mean_reward", "median_strict_time_s", "seam_jerk", "inner_jerk", "held_ticks")
    return {name: data[name] for name in names} | {"strict_tick": {str(e.seed): e.strict_tick for e in report.episodes}}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 when teacher or student stay below the gate."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.success", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=1000, help="held out: demonstrations begin at 300001")
    parser.add_argument("--task", help="one of the robot's tasks (default: its default one)")
    parser.add_argument("--work", type=Path, default=Path("outputs/success"))
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: benchmarks/results/<device>)")
    a = parser.parse_args(argv)
    seeds = range(a.first_seed, a.first_seed + a.seeds)
    try:
        work = a.work / (a.task or "default")
        bundles = {name: bundle_of(part, n, a.work) for name, (part, n) in SAMPLERS.items()}
        paths = {name: results_path(bundle, name.replace(" ", "_"), work) for name, bundle in bundles.items()}
        found = {name: play(bundle, seeds, paths[name], a.task) for name, bundle in bundles.items()}
        student = bundles["student, 2 steps"]
        blind = play(student, seeds[:BLIND_SEEDS], results_path(student, "blind", work), a.task, ["images"])
        pair = compare(paths["student, 2 steps"], paths["teacher, 10 steps"])
    except EdgewamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [["policy", "strict", "95 % interval", "success", "median time s"]]
    for name, report in {**found, "student, black images": blind}.items():
        s = report.strict
        time_s = "-" if report.median_strict_time_s is None else f"{report.median_strict_time_s:.2f}"
        rows.append(
            [name, f"{s.successes}/{s.n}", f"{s.wilson.low:.3f}-{s.wilson.high:.3f}", f"{report.success.successes}/{s.n}", time_s]
        )
    print("\n" + table(rows))
    print(f"student - teacher: {pair.difference:+.3f}, one-sided 95 % bound {pair.lower_bound:+.3f} (Tango), n = {pair.n}")
    machine = read_machine()
    # digests say which policies they were; paths would only say where this checkout lies
    conditions = {name: value for name, value in found["student, 2 steps"].config.items() if name not in ("policy", "identity")}
    out = (a.out or RESULTS / slug(machine.cpu)) / (f"success_{a.task}.json" if a.task else "success.json")
    write_json(
        out,
        {
            "when_utc": now_utc(),
            "conditions": conditions | {"first_seed": a.first_seed, "seeds": a.seeds, "cpu": machine.cpu},
            "versions": versions(),
            "digests": {part: read_manifest(shipped(part)).digest for part in ("vae", "teacher", "student", "bundle")},
            "policies": {name: row(report) for name, report in {**found, "student, black images": blind}.items()},
            "student_against_teacher": pair.to_json(),
        },
    )
    print(f"Written to {out}")
    return 0 if all(found[name].strict.rate >= GATE for name in ("teacher, 10 steps", "student, 2 steps")) else 1


if __name__ == "__main__":
    sys.exit(main())

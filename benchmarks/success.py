"""Strict success of the shipped policy on the tasks it knows: teacher, student, INT8 student, and the teacher undistilled.

    python3 -m benchmarks.success [--seeds N] [--first-seed 1000] [--task NAME ...] [--work outputs/success]

Every sampler is compiled from the shipped weights and played in lockstep on the same seeds (scene and noise), so that
results pair: the student must not be inferior to the teacher, nor the INT8 student to the student; what the teacher loses at
2 steps without distillation is shown beside them.  Blind, the student must fail.  One table and one JSON per task under
benchmarks/results/<device>/; a run that was cut goes on.
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
from edgewam.core import plugins
from edgewam.core.artifacts import read_manifest, versions, write_json
from edgewam.core.errors import EdgewamError
from edgewam.profiles.machine import read_machine
from edgewam.profiles.report import table
from edgewam.recipes.deploy import compile_plan
from edgewam.robot_bridge.evaluation.compare import compare
from edgewam.robot_bridge.evaluation.evaluate import EvaluationReport, evaluate
from edgewam.robot_bridge.robot import with_task
from edgewam.runtime.prompts import prompt_names

ROBOT = "aloha_sim"
SEEDS = 400
# Of the samplers that GATES compares.  Two policies of equal skill differ on a fifth of these scenes (benchmarks/NOTES.md): with
# 400 of them the bound would lie 3.6 points below the difference, with 1000 it lies 2.3 points below.
MORE_SEEDS = {"transfer_cube_random": 1000, "insertion": 1000}
BLIND_SEEDS = 20
TEACHER, STUDENT, INT8 = "teacher, 10 steps", "student, 2 steps", "INT8 student, 2 steps"
UNDISTILLED = "undistilled Euler, 2 steps"
# row -> (shipped part, sampler steps)
SAMPLERS = {
    TEACHER: ("teacher", 10),
    STUDENT: ("student", 2),
    INT8: ("quantized", 2),
    UNDISTILLED: ("teacher", 2),
    "undistilled Euler, 1 step": ("teacher", 1),
}
GATES = {"student against teacher": (STUDENT, TEACHER), "INT8 against student": (INT8, STUDENT)}
GATED = {name for pair in GATES.values() for name in pair}
# what distillation is for: told, not demanded
PAIRS = {**GATES, "undistilled 2 steps against teacher": (UNDISTILLED, TEACHER)}


def known_tasks() -> list[str]:
    """The robot's tasks whose prompt the shipped bundle knows."""
    known = prompt_names(shipped("bundle"))
    return [task for task in plugins.names("task") if with_task(ROBOT, task)[0].prompts[0] in known]


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
    names = (
        "strict", "success", "mean_reward", "median_strict_time_s", "seam_jerk", "inner_jerk", "held_ticks", "real_time_factor"
    )  # fmt: skip
    return {name: data[name] for name in names} | {"strict_tick": {str(e.seed): e.strict_tick for e in report.episodes}}


def judge(task: str, bundles: dict[str, Path], seeds: range, work: Path) -> tuple[dict[str, EvaluationReport], dict[str, Any]]:
    """Evaluations of every sampler and of the blind student, and the comparisons, of one task.

    Samplers that no gate compares play the first SEEDS seeds, the blind student BLIND_SEEDS.
    """
    paths = {name: results_path(bundle, name.replace(" ", "_"), work / task) for name, bundle in bundles.items()}
    found = {name: play(bundle, seeds if name in GATED else seeds[:SEEDS], paths[name], task) for name, bundle in bundles.items()}
    blind = results_path(bundles[STUDENT], "blind", work / task)
    found["student, black images"] = play(bundles[STUDENT], seeds[:BLIND_SEEDS], blind, task, ["images"])
    return found, {name: compare(paths[a], paths[b]) for name, (a, b) in PAIRS.items()}


def text(task: str, found: dict[str, EvaluationReport], pairs: dict[str, Any]) -> str:
    """The table of one task and the verdicts."""
    rows = [["policy", "strict", "95 % interval", "success", "median time s", "jerk at seams", "x real time"]]
    for name, report in found.items():
        s = report.strict
        time_s = "-" if report.median_strict_time_s is None else f"{report.median_strict_time_s:.2f}"
        jerk = "-" if report.seam_jerk is None else f"{report.seam_jerk:.3f}"
        speed = "-" if report.real_time_factor is None else f"{report.real_time_factor:.1f}"
        interval = f"{s.wilson.low:.3f}-{s.wilson.high:.3f}"
        rows.append([name, f"{s.successes}/{s.n}", interval, f"{report.success.successes}/{s.n}", time_s, jerk, speed])
    lines = [
        f"{name}: {pair.difference:+.3f}, one-sided 95 % bound {pair.lower_bound:+.3f} (Tango), n = {pair.n}: "
        f"{'non-inferior' if pair.is_non_inferior else 'NOT shown to be non-inferior'} at {pair.margin:.0%}"
        for name, pair in pairs.items()
    ]
    return "\n".join([f"\n{task}", table(rows), *lines])


def write(task: str, found: dict[str, EvaluationReport], pairs: dict[str, Any], seeds: range, folder: Path) -> Path:
    """One JSON per task."""
    # digests say which policies they were; paths would only say where this checkout lies
    conditions = {name: value for name, value in found[STUDENT].config.items() if name not in ("policy", "identity")}
    cpu = read_machine().cpu
    parts = ("vae", "teacher", "student", "bundle", "quantized")
    out = folder / f"success_{task}.json"
    write_json(
        out,
        {
            "when_utc": now_utc(),
            "task": task,
            "conditions": conditions | {"first_seed": seeds[0], "seeds": len(seeds), "cpu": cpu},
            "versions": versions(),
            "digests": {part: read_manifest(shipped(part)).digest for part in parts},
            "policies": {name: row(report) for name, report in found.items()},
            "comparisons": {name: pair.to_json() for name, pair in pairs.items()},
        },
    )
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 when a comparison does not show non-inferiority, 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.success", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, help=f"per sampler (default: {SEEDS}, or what the task needs: {MORE_SEEDS})")
    parser.add_argument("--first-seed", type=int, default=1000, help="held out: demonstrations begin at 300001")
    parser.add_argument("--task", action="append", help="may be repeated; by default every task that the policy knows")
    parser.add_argument("--work", type=Path, default=Path("outputs/success"))
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: benchmarks/results/<device>)")
    a = parser.parse_args(argv)
    folder = a.out or RESULTS / slug(read_machine().cpu)
    passed = True
    try:
        bundles = {name: bundle_of(part, n, a.work) for name, (part, n) in SAMPLERS.items()}
        for task in a.task or known_tasks():
            seeds = range(a.first_seed, a.first_seed + (a.seeds or MORE_SEEDS.get(task, SEEDS)))
            found, pairs = judge(task, bundles, seeds, a.work)
            print(text(task, found, pairs))
            print(f"Written to {write(task, found, pairs, seeds, folder)}", flush=True)
            passed &= all(pairs[name].is_non_inferior for name in GATES)
    except EdgewamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

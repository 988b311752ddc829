"""Runs the pytest-benchmark suites and compares with the baselines of this kind of machine; `--save` stores new ones.

    python3 -m benchmarks.baselines [--save] [--runs 1] [--factor 1.5] [-k EXPRESSION]

Baselines lie in `results/<processor>/baselines.json`: median and minimum of every benchmark in milliseconds.  A report, not a
gate: on a shared machine neighbours slow medians down by any factor, so only what is slower in its median and in its fastest
call is called slower.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, ROOT, now_utc, slug
from edgewam.core.artifacts import versions, write_json
from edgewam.core.errors import EdgewamError
from edgewam.profiles.machine import read_machine
from edgewam.profiles.report import table

FACTOR = 1.5  # a quiet machine repeats medians within a tenth; clocks and another package version account for some more
FILE = "baselines.json"


@dataclass(frozen=True)
class Spread:
    """Of one benchmark: median and minimum in milliseconds, and how many rounds they come from."""

    median_ms: float
    min_ms: float
    rounds: int


def parse(data: Mapping[str, Any]) -> dict[str, Spread]:
    """Benchmarks by name ("test_roofline.py::test_x[y]") from the JSON of pytest-benchmark, whose times are seconds."""
    found = {}
    for entry in data["benchmarks"]:
        stats = entry["stats"]
        found[Path(entry["fullname"]).name] = Spread(stats["median"] * 1e3, stats["min"] * 1e3, stats["rounds"])
    return found


def best(runs: Sequence[Mapping[str, Spread]]) -> dict[str, Spread]:
    """Per benchmark the run with the smallest median: the one with the fewest neighbours."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: min((run[name] for run in runs if name in run), key=lambda s: s.median_ms) for name in names}


def is_slower(now: Spread, before: Spread, factor: float) -> bool:
    """Whether median and minimum are both more than `factor` times what they were."""
    return now.median_ms > factor * before.median_ms and now.min_ms > factor * before.min_ms


def compare(now: Mapping[str, Spread], before: Mapping[str, Spread], factor: float) -> tuple[str, list[str]]:
    """The table of all benchmarks, and the names of those that became slower."""
    slower = [name for name in now if name in before and is_slower(now[name], before[name], factor)]
    rows = [["benchmark", "median ms", "baseline", "ratio", "min ms", "baseline", "ratio", ""]]
    for name, spread in now.items():
        old = before.get(name)
        row = [name]
        for key in ("median_ms", "min_ms"):
            value, base = getattr(spread, key), getattr(old, key) if old else None
            row += [f"{value:.4f}", f"{base:.4f}" if base else "-", f"{value / base:.2f}" if base else "-"]
        rows.append([*row, "SLOWER" if name in slower else "" if old else "new"])
    lines = [table(rows)]
    if gone := sorted(set(before) - set(now)):
        lines.append(f"not run this time: {', '.join(gone)}")
    return "\n".join(lines), slower


def circumstances(machine: Mapping[str, Any]) -> str:
    """Load and processors of a machine before a run, since a baseline from a busy one hides what became slower."""
    load, cpus = machine.get("load_1min"), machine["num_cpus"]
    busy = ", busy: medians mean little" if load is not None and load > 0.5 * cpus else ""
    return f"{cpus} processors, load {'unknown' if load is None else f'{load:.1f}'}{busy}"


def run_suites(expression: str | None) -> dict[str, Spread]:
    """Run every suite of this folder once.

    Raises:
        EdgewamError: a benchmark failed, or none ran.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "benchmark.json"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "benchmarks",
            "--benchmark-only",
            f"--benchmark-json={out}",
            "-p",
            "no:cacheprovider",
        ]
        done = subprocess.run(
            [*command, *(["-k", expression] if expression else [])], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode or not out.exists():
            tail = "\n".join(done.stdout.splitlines()[-15:])
            raise EdgewamError(f"The benchmarks did not run (pytest ended with {done.returncode}):\n{tail}\n{done.stderr[-500:]}")
        return parse(json.loads(out.read_text()))


def read_baselines(path: Path) -> dict[str, Spread]:
    """The stored ones.

    Raises:
        EdgewamError: there are none for this kind of machine, or they cannot be read.
    """
    try:
        stored = json.loads(path.read_text())["benchmarks"]
        return {name: Spread(**spread) for name, spread in stored.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgewamError(
            f"No baselines in '{path}' ({error!r}). Store some with python3 -m benchmarks.baselines --save."
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 0 also when something is slower, 2 where nothing could be compared."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.baselines", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--save", action="store_true", help="store this run as the baselines of this kind of machine")
    parser.add_argument("--runs", type=int, default=1, help="run the suites so often and keep the quietest of each benchmark")
    parser.add_argument("--factor", type=float, default=FACTOR, help="how much slower is worth a word")
    parser.add_argument("-k", dest="expression", help="only these, as pytest's -k; cannot be saved")
    a = parser.parse_args(argv)
    machine = read_machine()
    path = RESULTS / slug(machine.cpu) / FILE
    try:
        if a.save and a.expression:
            raise EdgewamError("A part of the benchmarks cannot become the baselines. Leave -k out.")
        before = {} if a.save else read_baselines(path)
        now = best([run_suites(a.expression) for _ in range(max(1, a.runs))])
    except EdgewamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if a.save:
        facts = {"when_utc": now_utc(), "cpu": machine.cpu, "machine": machine.to_json(), "versions": versions(), "runs": a.runs}
        write_json(path, {**facts, "benchmarks": {name: asdict(spread) for name, spread in now.items()}})
        print(f"Written to {path}: {len(now)} benchmarks")
        return 0
    text, slower = compare(now, before, a.factor)
    print(f"baselines: {circumstances(json.loads(path.read_text())['machine'])}; now: {circumstances(machine.to_json())}")
    print(
        f"{text}\n{len(slower)} of {len(now)} are more than {a.factor:g} times slower than in '{path}'{': ' if slower else ''}",
        end="",
    )
    print(", ".join(slower))
    return 0


if __name__ == "__main__":
    sys.exit(main())

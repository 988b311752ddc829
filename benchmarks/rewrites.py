"""The gain of every exact rewrite: counted at full size, timed on this processor for the policy `small`.

    python3 -m benchmarks.rewrites [--policy DIR] [--threads 1] [--n 200] [--counts-only]

Counts: GFLOP, MB of weights read and kernels of eager PyTorch per call of a stage, each rewrite on top of those before it in
the table (`benchmarks/rewrites_count.py`).  Times: p50 and p10 of each touched stage before and after, in eager PyTorch and in
ONNX Runtime, all versions of a stage in turns.  One JSON under benchmarks/results/<device>/.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results import RESULTS, Section, now_utc, slug
from benchmarks.rewrites_count import Pair, changing_counts, full_size, full_size_stages, held_counts
from edgewam.cli._shipped import or_shipped
from edgewam.compile.rewrites import REWRITES, refusals, rewrite
from edgewam.compile.samples import random_inputs
from edgewam.core import plugins
from edgewam.core.artifacts import versions, write_json
from edgewam.core.errors import EdgewamError
from edgewam.core.stage import Stage
from edgewam.profiles.contract import TimingContract
from edgewam.profiles.machine import read_machine
from edgewam.profiles.measure import Timing
from edgewam.profiles.report import table
from edgewam.recipes.deploy import compile_plan
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.engine import Engine, EngineOptions, allocate

BACKENDS = ("eager", "onnxruntime")
PLAIN = "plain"
WARMUP = 20
QUIET = 10  # percentile that says what the code costs on a shared machine, where neighbours only ever add time


def histories(stages: Mapping[str, Stage]) -> dict[str, dict[str, Stage]]:
    """Stage -> its versions by the rewrite that made them, `plain` first; stages that no rewrite touches are left out."""
    found = {name: {PLAIN: stage} for name, stage in stages.items()}
    now, refused = dict(stages), refusals(stages)
    for rewritten, row in REWRITES.items():
        if row.function is None or rewritten in refused:
            continue
        after = rewrite(now, [rewritten])
        for name in stages:
            if after[name].function is not now[name].function:
                found[name][rewritten] = after[name]
        now = after
    return {name: versions for name, versions in found.items() if len(versions) > 1}


def bound_call(stage: Stage, backend: str, threads: int, directory: Path) -> Callable[[], None]:
    """One call of the stage in a backend on fixed random inputs."""
    engine: Engine
    if backend == "eager":
        engine = TorchEngine(stage)
    else:
        build, run = plugins.load("backend_build", backend), plugins.load("backend_run", backend)
        engine = run.load(stage, directory, build.build(stage, directory), EngineOptions(threads))
    return engine.bind(random_inputs(stage.inputs, seed=1), {spec.name: allocate(spec) for spec in stage.outputs})


def time_stages(stages: Mapping[str, Stage], backend: str, threads: int, n: int, artifact: str) -> dict[str, Section]:
    """Stage -> timings of all its versions in turns, with their contract."""
    sections = {}
    for name, made in histories(stages).items():
        with tempfile.TemporaryDirectory() as folder:
            calls = {}
            for rewritten, stage in made.items():
                directory = Path(folder) / rewritten
                directory.mkdir()
                calls[rewritten] = bound_call(stage, backend, threads, directory)
            samples = in_turns(calls, n)
        contract = TimingContract.here(
            engine=backend, precision="fp32", steps=1, shapes={s.name: s.shape for s in stages[name].inputs}, stages=(name,),
            host_copies=False, threads=threads, warmup=WARMUP, n=n, artifact=artifact,
            notes="each rewrite on top of those before it, versions in turns, random inputs",
        )  # fmt: skip
        quiet = {f"{rewritten}_p{QUIET}_ms": float(np.percentile(ms, QUIET)) for rewritten, ms in samples.items()}
        sections[name] = Section(contract, quiet, {rewritten: Timing.from_samples(ms) for rewritten, ms in samples.items()})
    return sections


def in_turns(calls: Mapping[str, Callable[[], None]], n: int) -> dict[str, list[float]]:
    """Milliseconds of every timed call, one call of each per round; the first rounds are not timed."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(WARMUP + n):
        for name, call in calls.items():
            start = time.perf_counter_ns()
            call()
            if index >= WARMUP:
                samples[name].append((time.perf_counter_ns() - start) / 1e6)
    return samples


def counts_json(held: Mapping[str, Pair], changing: Mapping[str, Mapping[str, Pair]]) -> dict[str, Any]:
    """Plain-JSON form of both count tables."""

    def pair(counts: Pair) -> dict[str, Any]:
        return {side: counted.to_json() for side, counted in zip(("before", "after"), counts, strict=True)}

    return {
        "held": {name: pair(counts) for name, counts in held.items()},
        "changing": {name: {stage: pair(c) for stage, c in touched.items()} for name, touched in changing.items()},
    }


def counts_text(counts: Mapping[str, Any]) -> str:
    """One line per rewrite and touched stage."""
    rows = [["rewrite", "stage", "GFLOP", "", "weights MB", "", "kernels", ""]]
    lines = [(name, "(plain form -> held)", pair) for name, pair in counts["held"].items()]
    lines += [(name, stage, pair) for name, touched in counts["changing"].items() for stage, pair in touched.items()]
    for name, stage, pair in lines:
        cells = [f"{pair[side][unit]:g}" for unit in ("gflop", "weight_mb", "kernels") for side in ("before", "after")]
        rows.append([name, stage, *cells])
    return table(rows)


def times_text(timed: Mapping[str, Mapping[str, Section]]) -> str:
    """One line per stage and version: p50 and the quiet percentile in each backend, and the factor of the latter."""
    backends = list(timed)
    heads = (f"{backend} {head}" for backend in backends for head in ("p50 ms", f"p{QUIET} ms", "times as fast"))
    rows = [["stage", "version", *heads]]
    for stage in timed[backends[0]]:
        before: dict[str, float] = {}
        for version in timed[backends[0]][stage].timings:
            cells = []
            for backend in backends:
                section = timed[backend][stage]
                quiet = float(section.figures[f"{version}_p{QUIET}_ms"] or 0)
                factor = f"{before[backend] / quiet:.2f}" if backend in before else ""
                cells += [f"{section.timings[version].p50_ms:.3f}", f"{quiet:.3f}", factor]
                before[backend] = quiet
            rows.append([stage, version, *cells])
    first = timed[backends[0]]
    return "\n".join([next(iter(first.values())).contract.text(), table(rows)])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.rewrites", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--policy", type=Path, help="policy whose stages are timed (default: the shipped student)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--n", type=int, default=200, help="timed calls per version of a stage")
    parser.add_argument("--counts-only", action="store_true", help="count at full size, time nothing, write nothing")
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: benchmarks/results/<device>)")
    a = parser.parse_args(argv)
    started = now_utc()
    model, vae = full_size()
    stages = full_size_stages(model, vae)
    counts = counts_json(held_counts(model, vae), changing_counts(stages))
    print(counts_text(counts))
    if a.counts_only:
        return 0
    try:
        torch.set_num_threads(a.threads)
        plan = compile_plan(or_shipped(a.policy, "student"), "eager", threads=a.threads)
        digest = next(iter(plan.parents.values()))
        timed = {backend: time_stages(plan.stages, backend, a.threads, a.n, digest) for backend in BACKENDS}
    except EdgewamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(times_text(timed))
    for name, reason in refusals(plan.stages).items():
        print(f"{name}: not for this policy, {reason}")
    found = {
        "started_utc": started,
        "versions": versions(),
        "full_size_counts": counts,
        "small_timings": {backend: {s: section.to_json() for s, section in found.items()} for backend, found in timed.items()},
    }
    path = (a.out or RESULTS / slug(read_machine().cpu)) / "rewrites.json"
    write_json(path, found)
    print(f"Written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

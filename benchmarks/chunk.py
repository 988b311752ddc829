"""Action chunk of a bundle on the processor: p50, against eager at equal steps and against 10 steps, in one process.

    python3 -m benchmarks.chunk [--bundle DIR ...] [--policy DIR] [--threads 2] [--check]

Partners that are not given with --bundle are made in memory from --policy, the policy that the bundle was compiled from:
the reference model in PyTorch (`eager`) at equal steps, and the very same engines with a table of 10 steps.  All are timed
in turns, block by block, so that a ratio compares code and not the mood of the machine.  One table on the screen, one JSON
under benchmarks/results/<device>/.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, Record, Section, now_utc, slug, write_record
from edgewam.core import plugins
from edgewam.core.errors import EdgewamError
from edgewam.core.program import Call
from edgewam.profiles.contract import TimingContract
from edgewam.profiles.machine import read_machine
from edgewam.profiles.measure import Timing, measure_blocks
from edgewam.profiles.report import table
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.pipeline import Pipeline

FIGURES = ("L_chunk", "L_prefill", "L_compose")
LONG_STEPS = 10
LIMIT_MS, ENGINE_RATIO, STEPS_RATIO = 6.0, 2.0, 2.0  # what the policy `small` must hold on two cores


def name_of(bundle: Bundle) -> str:
    """Backend and steps, such as "onnxruntime_2"."""
    return f"{bundle.backend}_{steps_of(bundle)}"


def steps_of(bundle: Bundle) -> int:
    """Rows of the sampler's table."""
    loop = bundle.pipeline.programs.programs["act"].loop
    return loop.num_rows if loop else 0


def measure_bundles(bundles: dict[str, Bundle], n: int, rounds: int, warmup: int) -> dict[str, dict[str, Timing]]:
    """Timings by bundle and figure: `n` calls each, in `rounds` blocks that take turns (see `measure_blocks`).

    Raises:
        EdgewamError: a bundle without a policy, or fewer calls than rounds.
    """
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for name, bundle in bundles.items():
        if bundle.policy is None:
            raise EdgewamError(f"Bundle '{bundle.path}' has no policy, so it has no action chunk to time.")
        calls |= {(name, figure): call for figure, call in plugins.load("policy", bundle.policy).timed_calls(bundle).items()}
    timings = measure_blocks(calls, n, rounds, warmup)
    return {name: {figure: timings[name, figure] for other, figure in calls if other == name} for name in bundles}


def ratios(timings: dict[str, dict[str, Timing]]) -> dict[str, float]:
    """p50 of L_chunk over that of its partner: other backend at equal steps, more steps on the same backend."""
    p50 = {name: t["L_chunk"].p50_ms for name, t in timings.items()}
    parts = {name: (name.rpartition("_")[0], int(name.rpartition("_")[2])) for name in p50}
    found = {}
    for a, (backend_a, steps_a) in parts.items():
        for b, (backend_b, steps_b) in parts.items():
            if backend_a == "eager" != backend_b and steps_a == steps_b:
                found[f"{a} / {b}"] = p50[a] / p50[b]
            if backend_a == backend_b and steps_a > steps_b:
                found[f"{a} / {b}"] = p50[a] / p50[b]
    return found


def gates(timings: dict[str, dict[str, Timing]], main: str) -> dict[str, bool]:
    """What the bundle `main` must hold; only what this run can judge."""
    backend, _, steps = main.rpartition("_")
    found = ratios(timings)
    result = {f"L_chunk p50 <= {LIMIT_MS:g} ms": timings[main]["L_chunk"].p50_ms <= LIMIT_MS}
    for label, key, least in (
        ("engine against eager", f"eager_{steps} / {main}", ENGINE_RATIO),
        ("steps", f"{backend}_{LONG_STEPS} / {main}", STEPS_RATIO),
    ):
        if key in found:
            result[f"{label}: {key} >= {least:g}"] = found[key] >= least
    return result


def contract(bundle: Bundle, figure: str, timing: Timing, warmup: int) -> TimingContract:
    """Conditions of one figure."""
    config = bundle.manifest.config if bundle.manifest else {}
    program = bundle.pipeline.programs.programs["plan" if figure == "L_prefill" else "act"]
    stages = tuple(dict.fromkeys(s.stage for s in program.steps() if isinstance(s, Call)))
    return TimingContract.here(
        engine=bundle.backend, precision=config.get("precision", "fp32"), steps=steps_of(bundle) if figure == "L_chunk" else 0,
        shapes={spec.name: spec.shape for spec in program.inputs}, stages=("compose",) if figure == "L_compose" else stages,
        host_copies=True, threads=bundle.options.threads, warmup=warmup, n=timing.n, artifact=bundle.digest, notes=figure,
    )  # fmt: skip


def partners(main: Bundle, policy: Path, have: Sequence[str], threads: int) -> list[Bundle]:
    """What is missing for both ratios, made in memory from the policy that the bundle was compiled from.

    The same engines with the table of 10 steps, and the reference model itself in PyTorch (`eager`) at equal steps.

    Raises:
        EdgewamError: another policy than the bundle's.
    """
    import torch

    from edgewam.models import aha_wam
    from edgewam.quantize.artifact import is_quantized, read_quantized
    from edgewam.recipes.deploy import compile_plan
    from edgewam.runtime.backends.eager import TorchEngine
    from edgewam.training.policy_artifact import load_policy

    made = []
    plan = compile_plan(policy, "eager", steps_of(main), (), threads)
    if main.manifest is not None and dict(main.manifest.parents) != dict(plan.parents):
        raise EdgewamError(f"'{main.path}' was not compiled from '{policy}'. Give the policy it was compiled from.")
    if f"{main.backend}_{LONG_STEPS}" not in have:
        # for its time only: a student that was taught two steps has no use for ten
        below = load_policy(read_quantized(policy).policy if is_quantized(policy) else policy)
        programs = aha_wam.programs(below.model, LONG_STEPS)
        made.append(dataclasses.replace(main, pipeline=Pipeline(programs, main.stages, main.engines)))
    if f"eager_{steps_of(main)}" not in have:
        torch.set_num_threads(threads)
        engines = {name: TorchEngine(stage) for name, stage in plan.stages.items()}
        pipeline = Pipeline(plan.programs, plan.stages, engines)
        made.append(dataclasses.replace(main, backend="eager", stages=plan.stages, engines=engines, pipeline=pipeline))
    return made


def run(bundle_paths: Sequence[Path], policy: Path | None, threads: int, n: int, rounds: int, warmup: int) -> Record:
    """Open, make the partners that are missing, measure, and return the record.

    Raises:
        EdgewamError: two bundles of the same backend and steps, or what opening them refuses.
    """
    started, clock = now_utc(), time.monotonic()
    opened = [Bundle.open(path, threads=threads) for path in bundle_paths]
    if policy is not None:
        opened += partners(opened[0], policy, [name_of(b) for b in opened], threads)
    bundles = {name_of(bundle): bundle for bundle in opened}
    if len(bundles) != len(opened):
        raise EdgewamError(f"Two of the bundles have the same backend and steps: {[name_of(b) for b in opened]}.")
    timings = measure_bundles(bundles, n, rounds, warmup)
    main = next(iter(bundles))
    sections = {
        f"{name}_{figure}": Section(contract(bundles[name], figure, timing, warmup), {}, {figure: timing})
        for name, figures in timings.items()
        for figure, timing in figures.items()
    }
    judged: dict[str, Any] = {**ratios(timings), **gates(timings, main)}
    first = sections[f"{main}_L_chunk"]
    sections[f"{main}_L_chunk"] = Section(first.contract, judged, first.timings)
    params = {"threads": threads, "n": n, "rounds": rounds, "warmup": warmup}
    key = "-".join(bundle.digest[:8] for bundle in bundles.values())
    return Record("chunk", key, "ok", read_machine().cpu, started, time.monotonic() - clock, params, sections)


def text(record: Record) -> str:
    """The table: one row per figure, then ratios and gates, under the contract of the first bundle."""
    rows = [["bundle", "figure", "p50 ms", "p95", "p99", "max", "n"]]
    lines = []
    for name, section in record.sections.items():
        for figure, t in section.timings.items():
            numbers = [f"{ms:.3f}" for ms in (t.p50_ms, t.p95_ms, t.p99_ms, t.max_ms)]
            rows.append([name.removesuffix(f"_{figure}"), figure, *numbers, str(t.n)])
        for label, value in section.figures.items():
            lines.append(f"{label}: {'PASS' if value else 'FAIL'}" if isinstance(value, bool) else f"{label}: {value:.2f}x")
    return "\n".join([next(iter(record.sections.values())).contract.text(), table(rows), *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 when --check and a gate fails, 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.chunk", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--bundle", type=Path, action="append", default=[], help="bundle to time; the first is judged (default: shipped)"
    )
    parser.add_argument(
        "--policy", type=Path, help="the policy of the first bundle, for its partners (default: the shipped student)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n", type=int, default=300, help="timed calls per figure")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: benchmarks/results/<device>)")
    parser.add_argument("--check", action="store_true", help="exit status 1 when a gate fails")
    a = parser.parse_args(argv)
    try:
        bundles, policy = a.bundle, a.policy
        if not bundles:
            from edgewam.cli._shipped import shipped

            bundles, policy = [shipped("bundle")], policy or shipped("student")
        record = run(bundles, policy, a.threads, a.n, a.rounds, a.warmup)
    except EdgewamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text(record))
    print(f"Written to {write_record(a.out or RESULTS / slug(record.device), record)}")
    failed = [v for s in record.sections.values() for v in s.figures.values() if v is False]
    return 1 if a.check and failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Seam jerk, inner jerk and strict success of every chunk schedule, in lockstep at the latency of the real-time run.

    python3 -m benchmarks.schedules [--task NAME] [--seeds 100] [--latency-ticks N] [--rtc-bundle DIR]

Same seeds in every cell, a chunk every 8 ticks, as `edgewam run` asks for them.  Jerk is the third difference of the commands in
units of what a joint may move in one tick: at seams (the four ticks that see a new chunk begin) and within chunks.  Real-time
chunking needs weights that were trained with prefixes: the shipped ones were not and refuse; a bundle that was is given with
--rtc-bundle and measured with `replace` beside it.  Without --latency-ticks the latency is that of results/<device>/run_60s.json,
the median from observation to command, rounded up.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, now_utc, slug
from benchmarks.success import ROBOT, row, show
from edgewam.cli._shipped import FACTORY, shipped
from edgewam.core.artifacts import read_manifest, versions, write_json
from edgewam.core.errors import EdgewamError
from edgewam.profiles.machine import read_machine
from edgewam.profiles.report import table
from edgewam.robot_bridge.evaluation.compare import compare
from edgewam.robot_bridge.evaluation.evaluate import EvaluationReport, evaluate
from edgewam.robot_bridge.evaluation.lockstep import LockstepSettings
from edgewam.robot_bridge.robot import with_task
from edgewam.robot_bridge.run import RunSettings

TASK = "transfer_cube_random"  # the one that the shipped policy does not always solve, so that success can fall
SCHEDULES = ("replace", "ensemble", "crossfade")
RTC_SCHEDULES = ("replace", "rtc")  # of the weights that can


def measured_latency(folder: Path, control_hz: float) -> int:
    """Control ticks from observation to command in the recorded minute, its median rounded up.

    Raises:
        EdgewamError: no such record.
    """
    path = folder / "run_60s.json"
    try:
        median_ms = json.loads(path.read_text())["observation_to_command_ms"]["p50"]
    except (OSError, ValueError, KeyError) as error:
        raise EdgewamError(f"'{path}' tells no latency ({error}). Give one with --latency-ticks.") from error
    return math.ceil(median_ms * control_hz / 1000)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.schedules", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="default: the shipped one")
    parser.add_argument("--rtc-bundle", type=Path, help="a bundle whose weights were trained with prefixes")
    parser.add_argument("--task", default=TASK)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=5000, help="held out: demonstrations begin at 300001")
    parser.add_argument("--latency-ticks", type=int)
    parser.add_argument("--work", type=Path, default=Path("outputs/schedules"))
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: benchmarks/results/<device>)")
    a = parser.parse_args(argv)
    cpu = read_machine().cpu
    folder = a.out or RESULTS / slug(cpu)
    try:
        spec, _ = with_task(ROBOT, a.task)
        latency = measured_latency(RESULTS / slug(cpu), spec.control_hz) if a.latency_ticks is None else a.latency_ticks
        bench = _Bench(a.task, range(a.first_seed, a.first_seed + a.seeds), latency, a.work / a.task)
        cells = bench.play("bundle", a.bundle or shipped("bundle"), SCHEDULES)
        if a.rtc_bundle:
            cells |= bench.play("prefix-trained bundle", a.rtc_bundle, RTC_SCHEDULES)
    except EdgewamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(bench.rows))
    if not a.rtc_bundle:
        print(f"rtc: not measured. {refusal(a.bundle or shipped('bundle'), bench.settings('rtc'), a.task)}")
    record = {
        "when_utc": now_utc(),
        "contract": {
            "cpu": cpu, "versions": versions(), "robot": ROBOT, "task": a.task, "seeds": [a.first_seed, a.seeds],
            "settings": asdict(bench.settings("replace")), "threads": 1, "bundles": bench.digests,
        },
        "cells": cells,
    }  # fmt: skip
    out = folder / "schedules.json"
    write_json(out, record)
    print(f"Written to {out}")
    return 0


class _Bench:
    """One task, its seeds and the latency; fills the table on the way."""

    def __init__(self, task: str, seeds: range, latency_ticks: int, work: Path) -> None:
        self._task, self._seeds, self._latency, self._work = task, seeds, latency_ticks, work
        self._work.mkdir(parents=True, exist_ok=True)
        self.digests: dict[str, str] = {}
        self.rows = [
            ["weights", "schedule", "strict", "95 % interval", "against replace", "seam jerk", "inner jerk", "held ticks"]
        ]

    def settings(self, schedule: str) -> LockstepSettings:
        """Of one cell."""
        run, spec = RunSettings(), with_task(ROBOT, self._task)[0]
        return LockstepSettings(
            spec.episode_ticks, self._latency, run.replan_ticks, schedule, run.crossfade_ticks, run.ensemble_decay
        )

    def play(self, name: str, bundle: Path, schedules: Sequence[str]) -> dict[str, Any]:
        """Cells of one bundle, each compared with its `replace`."""
        digest = self.digests[name] = read_manifest(bundle, kind="bundle").digest
        cells, paths = {}, {}
        for schedule in schedules:
            paths[schedule] = self._work / f"{digest[:8]}-{schedule}-{self._latency}.jsonl"
            report = evaluate(
                FACTORY, {"bundle": str(bundle), "threads": 1}, self._seeds, task=self._task, settings=self.settings(schedule),
                identity={"bundle": digest}, results=paths[schedule],
                on_episode=lambda _, done, total, schedule=schedule: show(f"{name}, {schedule} {done}/{total}", done == total),
            )  # fmt: skip
            against = None if schedule == "replace" else compare(paths[schedule], paths["replace"])
            self._add(name, schedule, report, against and against.difference)
            cells[f"{name}, {schedule}"] = row(report) | {"against_replace": against and against.to_json()}
        return cells

    def _add(self, name: str, schedule: str, report: EvaluationReport, difference: float | None) -> None:
        strict, jerks = report.strict, (report.seam_jerk, report.inner_jerk)
        self.rows.append(
            [
                name,
                schedule,
                f"{strict.successes}/{strict.n}",
                f"{strict.wilson.low:.3f}-{strict.wilson.high:.3f}",
                "-" if difference is None else f"{difference:+.3f}",
                *("-" if jerk is None else f"{jerk:.3f}" for jerk in jerks),
                str(report.held_ticks),
            ]
        )


def refusal(bundle: Path, settings: LockstepSettings, task: str) -> str:
    """What a bundle says to real-time chunking, "" when it agrees."""
    try:
        evaluate(FACTORY, {"bundle": str(bundle), "threads": 1}, [0], task=task, settings=settings, workers=1)
    except EdgewamError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    sys.exit(main())

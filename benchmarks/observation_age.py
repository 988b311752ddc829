"""From light to motion: the age of what the robot acts on, end to end and in parts, of one run in real time.

    python3 -m benchmarks.observation_age [--seconds 60] [--json PATH]

For every chunk that moved the arm: capture of its oldest picture -> frame published -> inference begun -> chunk published ->
first command sent -> command handed to the robot.  All times are CLOCK_MONOTONIC, written by the process that did the thing;
n, p50, p99 and max of each part from the log.  The JSON goes to benchmarks/results/<device>/observation_age.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bridge import played
from benchmarks.bridge_figures import Rows, first_commands, quantiles_ms, stretch
from benchmarks.results import RESULTS, now_utc, slug
from edgewam.cli._shipped import FACTORY, shipped
from edgewam.core.artifacts import read_manifest, versions, write_json
from edgewam.core.errors import EdgewamError
from edgewam.profiles.machine import read_machine
from edgewam.profiles.report import table
from edgewam.robot_bridge.robot import with_task
from edgewam.robot_bridge.run import RunSettings

ROBOT = "aloha_sim"
PARTS = {
    "capture to frame published": ("t_capture_ns", "t_frame_ns"),
    "frame to inference begun": ("t_frame_ns", "t_begin_ns"),
    "inference": ("t_begin_ns", "t_chunk_ns"),
    "chunk to first command sent": ("t_chunk_ns", "sent_ns"),
    "command sent to robot": ("sent_ns", "robot_ns"),
}
WHOLE = {"capture to first command sent": ("t_capture_ns", "sent_ns"), "capture to robot": ("t_capture_ns", "robot_ns")}


def moments(rows: Rows) -> dict[str, Rows]:
    """For each chunk that moved the arm and whose first command reached the robot: when each thing happened, ns.

    Raises:
        EdgewamError: there is none.
    """
    applied = dict(zip(rows["applied_tick"].tolist(), rows["applied_ns"].tolist(), strict=True))
    first = first_commands(rows)
    first = first[[tick in applied for tick in first["tick"].tolist()]]
    if not len(first):
        raise EdgewamError("No chunk moved the robot in this run, so nothing has an age. Make it longer.")
    found = {name: first[name] for name in ("t_capture_ns", "t_frame_ns", "t_begin_ns", "t_chunk_ns", "sent_ns")}
    return found | {"robot_ns": np.array([applied[tick] for tick in first["tick"].tolist()], np.int64)}


def ages(rows: Rows) -> dict[str, dict[str, Any]]:
    """Every part and the two sums.

    Raises:
        EdgewamError: times that run backwards, or none.
    """
    when = moments(rows)
    found = {}
    for name, (begin, end) in {**PARTS, **WHOLE}.items():
        spans = when[end] - when[begin]
        if (spans < 0).any():
            raise EdgewamError(f"'{name}' is negative in {int((spans < 0).sum())} chunks: a process writes a wrong time.")
        found[name] = quantiles_ms(spans)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 2 when nothing could be measured."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.observation_age", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file of the result (default: in benchmarks/results/<device>)")
    a = parser.parse_args(argv)
    bundle, (spec, _) = shipped("bundle"), with_task(ROBOT, None)
    settings = RunSettings(episode_ticks=spec.episode_ticks)
    try:
        with tempfile.TemporaryDirectory(prefix="edgewam_age_") as work:
            arguments = {"bundle": str(bundle), "threads": 1}
            report, rows = played(Path(work), FACTORY, arguments, settings, robot=ROBOT, seconds=a.seconds, seed=a.seed)
        found = ages(rows)
    except EdgewamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    cpu = read_machine().cpu
    record = {
        "when_utc": now_utc(),
        "bundle": read_manifest(bundle, kind="bundle", verify=False).digest,
        "conditions": {"robot": ROBOT, "seconds": a.seconds, "first_seed": a.seed, "control_hz": spec.control_hz, "cpu": cpu},
        "versions": versions(),
        "real_time": report["real_time"] if report else {},
        "camera_hz": spec.camera_hz,
        "ages": found,
        "whole": stretch(rows, 0, round(a.seconds * spec.control_hz), spec, spec.control_hz),
    }
    path = a.json or RESULTS / slug(cpu) / "observation_age.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    lines = [["part", "n", "p50 ms", "p99 ms", "max ms"]]
    lines += [[name, *(str(age[key]) for key in ("n", "p50_ms", "p99_ms", "max_ms"))] for name, age in found.items()]
    print(table(lines))
    print(f"Written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Strict success against the age of the context, with the rolling memory and the router on and off.

    python3 -m benchmarks.context_age [--task NAME] [--seeds 100] [--first-seed 4000]

A refresh every R ticks lets chunks read a context that is up to R - 16 ticks old; R goes from one chunk to the horizon.
The router is what the family adds against an old context, the memory what it adds against a short one (the ablation of
the paper's Table 2, at the size of the shipped policy).  Same seeds in every cell.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, now_utc, slug
from benchmarks.success import row, show
from edgewam.cli._shipped import FACTORY, shipped
from edgewam.core.artifacts import read_manifest, write_json
from edgewam.core.errors import EdgewamError
from edgewam.profiles.machine import read_machine
from edgewam.profiles.report import table
from edgewam.robot_bridge.evaluation.evaluate import evaluate
from edgewam.robot_bridge.robots import aloha_sim
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.policies.aha_wam_host import HostConfig

PARTS: dict[str, list[str]] = {
    "memory and router": [],
    "no memory": ["memory"],
    "no router": ["router"],
    "neither memory nor router": ["memory", "router"],
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.context_age", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="default: the shipped one")
    parser.add_argument("--task", default=aloha_sim.DEFAULT_TASK)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=4000, help="held out: demonstrations begin at 300001")
    parser.add_argument("--work", type=Path, default=Path("outputs/context_age"))
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: benchmarks/results/<device>)")
    a = parser.parse_args(argv)
    seeds = range(a.first_seed, a.first_seed + a.seeds)
    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in PARTS}  # in the order of the refreshes
    try:
        bundle = a.bundle or shipped("bundle")
        digest = read_manifest(bundle, kind="bundle").digest
        host = HostConfig.of(Bundle.open(bundle, threads=1))
        rows = [["refresh every", "oldest context", *PARTS]]
        refreshes = list(range(host.chunk_size, host.horizon + 1, host.chunk_size))
        for refresh in refreshes:
            line = [f"{refresh} ticks", f"{refresh - host.chunk_size} ticks"]
            for name, ablate in PARTS.items():
                key = f"{refresh} ticks, {name}"
                path = a.work / a.task / f"{digest[:8]}-{refresh}-{'-'.join(ablate) or 'both'}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                report = evaluate(
                    FACTORY, {"bundle": str(bundle), "threads": 1, "refresh_ticks": refresh}, seeds, task=a.task, ablate=ablate,
                    identity={"bundle": digest}, results=path,
                    on_episode=lambda episode, done, total, key=key: show(f"{key} {done}/{total}", last=done == total),
                )  # fmt: skip
                cells[name].append(row(report))
                line.append(f"{report.strict.successes}/{report.strict.n}")
            rows.append(line)
    except EdgewamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    cpu = read_machine().cpu
    folder = a.out or RESULTS / slug(cpu)
    record = {
        "when_utc": now_utc(),
        "cpu": cpu,
        "task": a.task,
        "bundle": digest,
        "seeds": [a.first_seed, a.seeds],
        "refresh_ticks": refreshes,
        "chunk_ticks": host.chunk_size,
        "cells": cells,
    }
    out = folder / f"context_age_{a.task}.json"
    write_json(out, record)
    print(f"Written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

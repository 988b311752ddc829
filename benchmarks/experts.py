"""Strict success of the scripted experts over fresh seeds, for every task and style, with and without execution noise.

    python3 -m benchmarks.experts [--seeds 200] [--first-seed 2000000] [--task NAME ...]

Physics only: no pictures are drawn.  One table, one JSON under benchmarks/results/<device>/.  Exit status 1 when an expert
that executes its own targets stays below the gate; with noise, `edgewam collect` drops the failures.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import RESULTS, now_utc, slug
from edgewam.core import plugins
from edgewam.core.artifacts import versions, write_json
from edgewam.core.errors import EdgewamError
from edgewam.profiles.machine import read_machine
from edgewam.profiles.report import table
from edgewam.robot_bridge.evaluation.evaluate import Rate
from edgewam.robot_bridge.robots import aloha_demos, aloha_sim

GATE = 0.95


def judge(env: aloha_sim.AlohaSim, style: str, noise_rad: float, seeds: range) -> dict[str, Any]:
    """Play one demonstration per seed: rates, the tick of strict success, seconds per demonstration without pictures."""
    began = time.perf_counter()
    episodes = [aloha_demos.rollout(env, seed, style, noise_rad) for seed in seeds]
    ticks = [int(np.argmax(episode.strict)) + 1 for episode in episodes if episode.strict_success]
    return {
        "task": env.task.name,
        "style": style,
        "noise_rad": noise_rad,
        "strict": Rate.of(len(ticks), len(episodes)),
        "success": Rate.of(sum(bool((episode.rewards == 4).any()) for episode in episodes), len(episodes)),
        "median_strict_tick": float(np.median(ticks)) if ticks else None,
        "last_strict_tick": max(ticks, default=None),
        "failed_seeds": [episode.seed for episode in episodes if not episode.strict_success],
        "seconds_each": (time.perf_counter() - began) / len(episodes),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.experts", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=2_000_000, help="far from those of demonstrations and evaluations")
    parser.add_argument("--task", action="append", help="may be repeated; by default every task")
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: benchmarks/results/<device>)")
    a = parser.parse_args(argv)
    seeds = range(a.first_seed, a.first_seed + a.seeds)
    found = []
    try:
        for name in a.task or plugins.names("task"):
            env = aloha_sim.make(task=name, render=False)
            for style in env.task.styles:
                for noise_rad in (0.0, aloha_demos.NOISE_RAD):
                    found.append(judge(env, style, noise_rad, seeds))
                    print(f"{name}, {style}, noise {noise_rad} rad", file=sys.stderr, flush=True)
            env.close()
    except EdgewamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [["task", "style", "noise rad", "strict", "95 % interval", "reward 4", "strict tick median / last", "s each"]]
    for f in found:
        strict, low, high = f["strict"], f["strict"].wilson.low, f["strict"].wilson.high
        ticks = f"{f['median_strict_tick']} / {f['last_strict_tick']}"
        row = [f["task"], f["style"], f["noise_rad"], f"{strict.successes}/{strict.n}", f"{low:.3f}-{high:.3f}"]
        rows.append([str(cell) for cell in (*row, f["success"].successes, ticks, f"{f['seconds_each']:.3f}")])
    print("\n" + table(rows))
    machine = read_machine()
    out = (a.out or RESULTS / slug(machine.cpu)) / "experts.json"
    conditions = {"first_seed": a.first_seed, "seeds": a.seeds, "cpu": machine.cpu, "gate": GATE}
    experts = [{**f, **{name: {"successes": f[name].successes, "n": f[name].n} for name in ("strict", "success")}} for f in found]
    write_json(out, {"when_utc": now_utc(), "conditions": conditions, "versions": versions(), "experts": experts})
    print(f"Written to {out}")
    return 0 if all(f["strict"].rate > GATE for f in found if not f["noise_rad"]) else 1


if __name__ == "__main__":
    sys.exit(main())

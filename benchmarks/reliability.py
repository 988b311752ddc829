"""Writes the measured blocks of docs/reliability.md from the committed results: soaks, ages, success in real time.

    python3 -m benchmarks.reliability [--check] [--device NAME]

--check only compares (exit status 1 when the page differs).  What has not been measured yet is left out and said so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import DEVICE
from benchmarks.marks import with_block
from benchmarks.results import RESULTS, ROOT

DOC = ROOT / "docs" / "reliability.md"
SOAKS = ("soak", "soak_no_fifo", "soak_recorded", "soak_100hz")
NOTHING = "Not measured yet."


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """A result, or None where there is none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def markdown(rows: list[list[Any]]) -> str:
    """A table, its head first."""
    lines = [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def soak_block(soaks: dict[str, dict[str, Any]]) -> str:
    """One table of stretches, one of gates, one of memory."""
    if not soaks:
        return NOTHING
    head = "run, part, missed %, HOLD %, late ms p50 / p99 / max, chunks/s, capture to command ms p50 / p99, violations, strict"
    stretches: list[list[Any]] = [head.split(", ")]
    gates: list[list[Any]] = [["run", "gate", "value", "limit", "verdict"]]
    memory: list[list[Any]] = [["run", "process", "MB after warm-up", "MB at the end", "growth %"]]
    for name, soak in soaks.items():
        conditions = soak["conditions"]
        scheduler = soak["real_time"].get("io", {}).get("scheduler", "unknown").split(" (")[0]
        shown = f"{name}: {conditions['minutes']:g} min at {conditions['control_hz']:g} Hz, {scheduler}"
        if not soak["is_complete"]:
            shown += f" (NOT complete: {'; '.join(soak['faults'])})"
        for part, figures in {**soak["thirds"], "whole": soak["whole"]}.items():
            late, age = figures["lateness"], figures["observation_to_command"]
            is_burnt = part == "middle" and conditions["burners"]
            stretches.append(
                [
                    shown if part == "first" else "", f"{part}, burnt" if is_burnt else part, figures["missed_percent"],
                    figures["hold_percent"], f"{late['p50_ms']} / {late['p99_ms']} / {late['max_ms']}", figures["chunk_hz"],
                    f"{age['p50_ms']} / {age['p99_ms']}", figures["violations"],
                    f"{figures['strict_successes']}/{figures['episodes']}",
                ]
            )  # fmt: skip
        for gate in soak["gates"]:
            if not gate["gate"].startswith("memory growth"):
                verdict = "passed" if gate["passed"] else "**missed**"
                gates.append([name, gate["gate"], gate["value"], gate["limit"], verdict])
        for role, used in soak["memory"].items():
            memory.append([name, role, used["after_warm_up_mb"], used["end_mb"], used["growth_percent"]])
    return "\n\n".join(markdown(rows) for rows in (stretches, gates, memory))


def age_block(age: dict[str, Any] | None, success: dict[str, Any] | None) -> str:
    """Every part of the way from a picture to the robot, and what the way costs in success."""
    parts = []
    if age is not None:
        rows = [["part of the way", "n", "p50 ms", "p99 ms", "max ms"]]
        rows += [[name, *(a[key] for key in ("n", "p50_ms", "p99_ms", "max_ms"))] for name, a in age["ages"].items()]
        parts.append(markdown(rows))
    if success is not None:
        pair, interval = success["comparison"], success["interval_95"]
        parts.append(
            f"Strict success on {success['task']}, seeds {success['conditions']['first_seed']} on: in real time "
            f"{success['real_time']['strict']['successes']}/{pair['n']}, in lockstep at the measured latency of "
            f"{success['latency_ticks']} ticks {success['lockstep']['strict']['successes']}/{pair['n']}. Difference "
            f"{100 * pair['difference']:+.1f} points, 95 % interval {100 * interval['low']:+.1f} to "
            f"{100 * interval['high']:+.1f}; "
            f"{'within' if pair['is_non_inferior'] else '**not shown to be within**'} {100 * pair['margin']:.0f} points "
            f"(one-sided 95 % bound {100 * pair['lower_bound']:+.1f}, Tango)."
        )
    return "\n\n".join(parts) or NOTHING


def page(text: str, folder: Path) -> str:
    """The document with both blocks as the results say."""
    soaks = {name: found for name in SOAKS if (found := read(folder, name)) is not None}
    text = with_block(text, "soak", soak_block(soaks))
    age, success = read(folder, "observation_age"), read(folder, "real_time_success_transfer_cube")
    return with_block(text, "observation_age", age_block(age, success))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.reliability", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--device", default=DEVICE, help="folder below benchmarks/results")
    a = parser.parse_args(argv)
    text = DOC.read_text()
    new = page(text, RESULTS / a.device)
    if a.check:
        return int(new != text)
    DOC.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())

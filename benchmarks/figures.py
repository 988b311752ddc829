"""The README's table of figures: runs what was not measured for the shipped artifacts yet, then writes the README's table.

    python3 -m benchmarks.figures [--table | --check] [--again] [--device NAME]

--table only writes the table from the committed results, --check only compares it (exit status 1 when it differs), --again
measures everything anew.  A run that was cut goes on.  What needs a quiet machine for half an hour (`BRIDGE`) is measured by its
own command only, and shown when it is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import bridge_rows
from benchmarks.bridge_rows import Rows
from benchmarks.marks import with_block
from benchmarks.results import RESULTS, ROOT, slug
from benchmarks.success import known_tasks
from edgewam.cli._shipped import shipped
from edgewam.core.artifacts import read_manifest
from edgewam.profiles.machine import read_machine

README = ROOT / "README.md"
DEVICE = "amd-epyc"  # whose results the README shows: two cores
FIRST_SEED = 8000  # of the success figures; seeds from 300001 on made the demonstrations
AGE_TASK = "transfer_cube_random"  # the one with most to lose: twenty cells


@dataclass(frozen=True)
class Figures:
    """One result file: its name, the module (or edgewam command) that writes it, its rows of the table.

    digest_of: of the artifact that it is of; None where it is of none.
    """

    name: str
    command: tuple[str, ...]
    digest_of: Callable[[dict[str, Any]], str | None]
    rows: Callable[[dict[str, Any]], Rows]
    part: str = "bundle"

    @property
    def shown(self) -> str:
        """The command as a reader types it."""
        words = [word for word in self.command if word != "-m"]
        return " ".join(["edgewam", *words[1:]] if words[0] == "edgewam" else ["python3", "-m", *words])


def _ms(timing: dict[str, float]) -> str:
    return f"{timing['p50_ms']:.2f} ms p50, {timing['p99_ms']:.2f} ms p99"


def _rate(row: dict[str, Any]) -> str:
    strict = row["strict"]
    low, high = strict["wilson"]["low"], strict["wilson"]["high"]
    return f"{strict['successes']}/{strict['n']} ({100 * low:.1f}-{100 * high:.1f} %)"


def _pair(pair: dict[str, Any]) -> str:
    verdict = "non-inferior" if pair["is_non_inferior"] else "NOT shown to be non-inferior"
    return f"{100 * pair['difference']:+.1f}, bound {100 * pair['lower_bound']:+.1f}: {verdict} at {100 * pair['margin']:.0f}"


def chunk_rows(data: dict[str, Any]) -> Rows:
    """Float32 chunk and its two partners."""
    sections = data["sections"]
    ours, ten, eager = (sections[f"{name}_L_chunk"] for name in ("onnxruntime_2", "onnxruntime_10", "eager_2"))
    ratio = ours["figures"]
    p50 = {name: s["timings"]["L_chunk"]["p50_ms"] for name, s in (("ten", ten), ("eager", eager))}
    return [
        ("action chunk, image and state in, actions out: 2 steps, float32, 2 threads", _ms(ours["timings"]["L_chunk"])),
        (
            "the same engine with 10 steps; eager PyTorch with 2 steps (one process)",
            f"{p50['ten']:.2f} ms ({ratio['onnxruntime_10 / onnxruntime_2']:.2f}x); "
            f"{p50['eager']:.2f} ms ({ratio['eager_2 / onnxruntime_2']:.2f}x)",
        ),
    ]


def int8_rows(data: dict[str, Any]) -> Rows:
    """INT8 against float32."""
    chunk, size, error = data["figures"]["L_chunk"], data["weights"], data["excess_error"]
    return [
        (
            "INT8 chunk; float32 chunk (one process)",
            f"{_ms(chunk['int8'])}; {chunk['float32']['p50_ms']:.2f} ms p50 ({chunk['speedup']:.2f}x)",
        ),
        (
            "INT8 weights: the quantised layers; all of the engine",
            f"{size['quantised_ratio']:.2f}x smaller; {size['float32_engine_bytes'] / 1e6:.1f} -> "
            f"{size['int8_engine_bytes'] / 1e6:.1f} MB ({size['whole_ratio']:.2f}x)",
        ),
        (
            "INT8 excess error ratio; time to quantise",
            f"median {error['median']:.3f}, p99 {error['p99']:.3f}; {data['quantise_seconds']:.0f} s",
        ),
    ]


def success_rows(data: dict[str, Any]) -> Rows:
    """One row per sampler of a task, then the comparisons."""
    task, first = data["task"], data["conditions"]["first_seed"]
    rows = []
    for name, policy in data["policies"].items():
        seeds = f"seeds {first}-{first + policy['strict']['n'] - 1}"
        rows.append((f"{task}, strict success, {seeds}: {name}", _rate(policy)))
    for name, pair in data["comparisons"].items():
        rows.append((f"{task}: {name} (points, one-sided 95 %, n = {pair['n']})", _pair(pair)))
    return rows


def run_rows(data: dict[str, Any]) -> Rows:
    """A minute in real time."""
    age = data["observation_to_command_ms"]
    return [
        (
            "60 s in real time: control rate, chunks, missed, held, limit violations",
            f"{data['control_hz']:.2f} Hz, {data['chunk_hz']:.1f} per s, {data['missed']}, {data['held']}, "
            f"{data['violations'] + data['violations_in_log']}",
        ),
        (
            "observation to command (first command of a chunk - capture of its image)",
            f"{age['p50']:.1f} ms p50, {age['p99']:.1f} ms p99",
        ),
    ]


def age_rows(data: dict[str, Any]) -> Rows:
    """Success against the age of the context, a row for each choice of parts."""
    ages = [refresh - data["chunk_ticks"] for refresh in data["refresh_ticks"]]
    first, count = data["seeds"]
    seeds = f"{count} (seeds {first}-{first + count - 1})"
    where = f"{data['task']}, strict of {seeds}, context up to {', '.join(map(str, ages))} ticks old"
    return [
        (f"{where}: {part}", ", ".join(str(cell["strict"]["successes"]) for cell in cells))
        for part, cells in data["cells"].items()
    ]


def _bundle(data: dict[str, Any]) -> str:
    return str(data["bundle"])


FIGURES = (
    Figures(
        "chunk", ("-m", "benchmarks.chunk"),
        lambda d: str(d["sections"]["onnxruntime_2_L_chunk"]["contract"]["artifact"]), chunk_rows,
    ),
    Figures("int8", ("-m", "benchmarks.int8"), lambda d: str(d["digests"]["quantized"]), int8_rows, "quantized"),
    Figures("run_60s", ("-m", "edgewam", "run", "--seconds", "60", "--json"), _bundle, run_rows),
    *(
        Figures(
            f"success_{task}", ("-m", "benchmarks.success", "--task", task, "--first-seed", str(FIRST_SEED)),
            lambda d: str(d["digests"]["quantized"]), success_rows, "quantized",
        )
        for task in known_tasks()
    ),
    Figures(f"context_age_{AGE_TASK}", ("-m", "benchmarks.context_age", "--task", AGE_TASK), _bundle, age_rows),
)  # fmt: skip
SOAKS = {"soak_recorded": ("--record",), "soak_no_fifo": ("--no-fifo",), "soak_100hz": ("--control-hz", "100", "--minutes", "5")}
BRIDGE = (
    *(
        Figures(name, ("-m", "benchmarks.soak", *options), lambda d: str(d["conditions"]["bundle"]), bridge_rows.soak_rows)
        for name, options in SOAKS.items()
    ),
    Figures("observation_age", ("-m", "benchmarks.observation_age"), _bundle, bridge_rows.age_rows),
    Figures("real_time_success_transfer_cube", ("-m", "benchmarks.real_time_success"), _bundle, bridge_rows.real_time_rows),
    Figures("openpi_door", ("-m", "benchmarks.openpi_door"), lambda d: None, bridge_rows.door_rows),
    Figures(
        "schedules", ("-m", "benchmarks.schedules", "--rtc-bundle", "BUNDLE"),
        lambda d: str(d["contract"]["bundles"]["bundle"]), bridge_rows.schedule_rows,
    ),
)  # fmt: skip


def is_measured(figures: Figures, folder: Path) -> bool:
    """Whether a committed result is of the shipped artifact."""
    path = folder / f"{figures.name}.json"
    if not path.exists():
        return False
    digest = figures.digest_of(json.loads(path.read_text()))
    return digest in (None, read_manifest(shipped(figures.part), verify=False).digest)


def measure(figures: Figures, folder: Path) -> int:
    """Run the command that writes the result; returns its exit status (1: a gate failed, the result is there)."""
    print(f"\n$ {figures.shown}", flush=True)
    command = [sys.executable, *figures.command]
    if "--json" not in figures.command:
        return subprocess.run([*command, "--out", str(folder)]).returncode
    done = subprocess.run(command, stdout=subprocess.PIPE)
    if done.returncode == 0:
        (folder / f"{figures.name}.json").write_bytes(done.stdout)
    return done.returncode


def table_of(folder: Path) -> str:
    """README's table from the results of one device."""
    lines = ["| figure | value | made by |", "|---|---|---|"]
    bridge = [figures for figures in BRIDGE if (folder / f"{figures.name}.json").exists()]
    for figures in (*FIGURES, *bridge):
        made_by = f"`{figures.shown}` -> `{figures.name}.json`"
        for label, value in figures.rows(json.loads((folder / f"{figures.name}.json").read_text())):
            lines.append(f"| {label} | {value} | {made_by} |")
            made_by = "the same"
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 when a figure could not be made or misses its gate, or --check finds a difference."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.figures", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--device", default=DEVICE, help="folder below benchmarks/results")
    a = parser.parse_args(argv)
    folder = RESULTS / a.device
    status = 0
    if not (a.table or a.check):
        if (here := slug(read_machine().cpu)) != a.device:
            print(f"error: this machine is '{here}', not '{a.device}'. Measure here with --device {here}.", file=sys.stderr)
            return 2
        for figures in FIGURES:
            if a.again or not is_measured(figures, folder):
                status |= measure(figures, folder)
    text = README.read_text()
    new = with_block(text, "figures", table_of(folder))
    if a.check:
        return int(new != text)
    if a.device != DEVICE:
        print(table_of(folder))
        return int(status != 0)
    README.write_text(new)
    print(f"Wrote the table of {README}")
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())

"""Peak memory and time of `edgewam inspect` and `edgewam convert`, there and back, on a checkpoint of at least 2 GB.

    python3 -m benchmarks.import_checkpoint [--layers 4] [--dir DIR]

The checkpoint has AHA-WAM's keys at full width with fewer layers, bf16, written by torch.save; it is made in a temporary
folder and removed.  Every command runs in a process of its own, with the file's pages dropped from the cache before.  The
15 GB of the released file are extrapolated: bytes per second are those measured, memory does not grow with the file.
One JSON under benchmarks/results/<device>/; exit status 1 when a gate is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, ROOT, now_utc, slug
from edgewam.core.artifacts import versions, write_json
from edgewam.profiles.machine import read_machine
from edgewam.profiles.report import table

RELEASED_BYTES = 14_698_857_112  # 7,349,428,556 values of two bytes
# Issue 6: inspect under 2 s and 1 GB, convert below 3 GB and the largest tensor.
INSPECT_S, INSPECT_BYTES, CONVERT_BYTES = 2.0, 10**9, 3 * 10**9

_MAKE = """
import sys, torch
from edgewam.models import aha_wam
from edgewam.models.aha_wam_config import AhaWamConfig
with torch.device("meta"):
    model = aha_wam.build(AhaWamConfig(num_layers=int(sys.argv[2])))
block = torch.randn(1 << 20).bfloat16()
groups = {}
for name, tensor in model.state_dict().items():
    group, key = name.split(".", 1)
    values = block.repeat(-(-tensor.numel() // len(block)))[: tensor.numel()].clone()
    groups.setdefault(group, {})[key] = values.view(tensor.shape)
torch.save(groups | {"step": 1, "torch_dtype": "torch.bfloat16"}, sys.argv[1])
"""
# VmHWM is the peak of this program alone; getrusage would count what its parent had before.
_RUN = """
import json, runpy, sys, time
began = time.perf_counter()
sys.argv = ["edgewam", *sys.argv[1:]]
try:
    runpy.run_module("edgewam", run_name="__main__")
except SystemExit as stop:
    if stop.code:
        raise
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
found = {"peak_bytes": peak * 1024, "seconds": time.perf_counter() - began, "cpu_s": time.process_time()}
print(json.dumps(found), file=sys.stderr)
"""


@dataclass(frozen=True)
class Run:
    """One command: seconds from start to end without the interpreter's start, processor seconds, peak resident bytes."""

    seconds: float
    cpu_s: float
    peak_bytes: int


def run(source: Path, *arguments: object) -> Run:
    """Run an edgewam command on a file that is not in the page cache."""
    for path in [source] if source.is_file() else source.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    done = _python(_RUN, *arguments)
    return Run(**json.loads(done.strip().splitlines()[-1]))


def _python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))} failed:\n{done.stderr}")
    return done.stderr


def measure(folder: Path, layers: int) -> dict[str, Any]:
    """Make the checkpoint and run the three commands."""
    source, artifact, back = folder / "checkpoint.pt", folder / "artifact", folder / "back.pt"
    began = time.perf_counter()
    _python(_MAKE, source, layers)
    size = source.stat().st_size
    print(f"{size / 1e9:.2f} GB written in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    runs = {
        "inspect": run(source, "inspect", source),
        "convert": run(source, "convert", source, artifact),
        "convert --format upstream": run(artifact, "convert", artifact, back, "--format", "upstream"),
    }
    commands = {}
    for name, found in runs.items():
        entry = {"seconds": found.seconds, "cpu_s": found.cpu_s, "peak_bytes": found.peak_bytes}
        if name != "inspect":
            entry |= {"bytes_per_s": size / found.seconds, "seconds_at_14_7_gb": found.seconds * RELEASED_BYTES / size}
        commands[name] = entry
    return {"bytes": size, "layers": layers, "commands": commands, "came_back_equal": _equal(source, back)}


def _equal(a: Path, b: Path) -> bool:
    """Whether both files hold the same keys in order with the same bytes."""
    from edgewam.models.checkpoints import open_weights

    first, second = open_weights(a), open_weights(b)
    return (
        first.layout == second.layout
        and first.extra == second.extra
        and list(first.entries) == list(second.entries)
        and all(
            (one.dtype, one.shape) == (two.dtype, two.shape)
            and all(x == y for x, y in zip(one.pieces(), two.pieces(), strict=True))
            for one, two in zip(first.entries.values(), second.entries.values(), strict=True)
        )
    )


def gates(found: dict[str, Any]) -> list[str]:
    """What was missed."""
    commands = found["commands"]
    missed = [] if found["came_back_equal"] else ["the file did not come back equal"]
    if commands["inspect"]["seconds"] >= INSPECT_S or commands["inspect"]["peak_bytes"] >= INSPECT_BYTES:
        missed.append(f"inspect must take less than {INSPECT_S} s and {INSPECT_BYTES / 1e9:.0f} GB")
    missed += [
        f"{name} must stay below {CONVERT_BYTES / 1e9:.0f} GB"
        for name, command in commands.items()
        if command["peak_bytes"] >= CONVERT_BYTES
    ]
    return missed


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.import_checkpoint", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=4, help="4 make 2.3 GB; the released file has 30")
    parser.add_argument("--dir", type=Path, help="where the temporary files go; three times the checkpoint must fit")
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: benchmarks/results/<device>)")
    a = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=a.dir) as folder:
        found = measure(Path(folder), a.layers)
    machine = read_machine()
    rows = [["command", "s", "CPU s", "peak MB", "GB/s", "s at 14.7 GB"]]
    for name, command in found["commands"].items():
        rate, extrapolated = command.get("bytes_per_s"), command.get("seconds_at_14_7_gb")
        rows.append([
            name, f"{command['seconds']:.2f}", f"{command['cpu_s']:.2f}", f"{command['peak_bytes'] / 1e6:.0f}",
            f"{rate / 1e9:.2f}" if rate else "-", f"{extrapolated:.0f}" if extrapolated else "-",
        ])  # fmt: skip
    print(f"{found['bytes'] / 1e9:.2f} GB, {found['layers']} layers of full width, bf16, {machine.cpu}\n\n{table(rows)}")
    conditions = {"cpu": machine.cpu, "system": machine.system, "page_cache": "dropped before each command", "n": 1}
    data = {"when_utc": now_utc(), "conditions": conditions, "versions": versions(), **found}
    path = (a.out or RESULTS / slug(machine.cpu)) / "import_checkpoint.json"
    write_json(path, data)
    print(f"\nWritten to {path}")
    for sentence in (missed := gates(found)):
        print(f"MISSED: {sentence}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

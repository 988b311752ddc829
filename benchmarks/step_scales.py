"""What one activation scale per solver step gains over one static scale, in the denoise stage of the shipped policies.

    python3 -m benchmarks.step_scales DATASET [--episodes 5] [--frames 48]

Both are calibrated on the same recording and judged on the same frames: excess error ratio of whole chunks against float32,
FP8 and INT8 (SmoothQuant) W8A8, all layers of the denoise stage but the narrow ones, everything else float32.  One table and
benchmarks/results/<device>/step_scales.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import RESULTS, now_utc, slug
from edgewam.cli._shipped import shipped
from edgewam.core.artifacts import versions, write_json
from edgewam.data.dataset import Dataset
from edgewam.profiles.machine import read_machine
from edgewam.profiles.report import table
from edgewam.quantize.calibrate import calibrate
from edgewam.quantize.layers import find_layers, quantized
from edgewam.quantize.named import is_narrow
from edgewam.quantize.record import Recording, RecordingEngine, check_dataset, record
from edgewam.recipes.deploy import compile_plan
from edgewam.recipes.quantization_judge import Judge, eager_policy

STAGE = "denoise"
SAMPLERS = {"student, 2 steps": ("student", 2), "teacher, 10 steps": ("teacher", 10)}
FORMATS = ("fp8", "int8")
ALPHA, PERCENTILE = 0.5, 99.999  # those of every plan


def measure(part: str, steps: int, data: Dataset, episodes: int, frames: int) -> dict[str, Any]:
    """Format -> error with one scale and with one per step, and the largest ratio between the scales of one layer."""
    source = compile_plan(shipped(part), "eager", steps, threads=1)
    check_dataset(data, int(source.host["state_dim"]), episodes)
    engines = {name: RecordingEngine(stage) for name, stage in source.stages.items()}
    policy, chunk = eager_policy(source, engines), int(source.host["chunk_size"])
    recording: Recording = record(policy, source.programs, engines, data, list(source.prompts), chunk, episodes)
    layers = {n: layer for n, layer in find_layers(source.stages).items() if n[0] == STAGE and not is_narrow(layer)}
    judge = Judge(source, data, frames)
    found: dict[str, Any] = {}
    for kind in FORMATS:
        found[kind] = {}
        for per_step in (False, True):
            scales = calibrate(source.stages, dict.fromkeys(layers, kind), recording, ALPHA, PERCENTILE, per_step=per_step)
            error = judge.together({name: quantized(layers[name], scales[name]) for name in layers})
            found[kind]["per step" if per_step else "static"] = {"median": error.median, "p99": error.p99}
            if per_step:
                ranges = [scale.input_scale for scale in scales.values() if scale.input_scale is not None]
                found[kind]["largest_range_over_smallest"] = sorted(float(s.max() / s.min()) for s in ranges)
    return {"steps": steps, "layers": len(layers), "chunks": recording.num_chunks, "formats": found}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--frames", type=int, default=48)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data = Dataset.open(chosen.dataset)
    results = {name: measure(*which, data, chosen.episodes, chosen.frames) for name, which in SAMPLERS.items()}
    rows = [["policy", "format", "static: median (p99)", "per step", "range over steps, median layer", "largest"]]
    for name, result in results.items():
        for kind, found in result["formats"].items():
            ratios = found["largest_range_over_smallest"]
            errors = [f"{found[w]['median']:.4f} ({found[w]['p99']:.3f})" for w in ("static", "per step")]
            rows.append([name, kind, *errors, f"{ratios[len(ratios) // 2]:.2f}", f"{ratios[-1]:.2f}"])
    sys.stdout.write(table(rows) + "\n")
    machine = read_machine()
    out = RESULTS / slug(machine.cpu) / "step_scales.json"
    facts = {"made": now_utc(), "command": "python3 -m benchmarks.step_scales", "versions": versions(), "dataset": data.digest}
    write_json(out, {**facts, "episodes": chosen.episodes, "frames": chosen.frames, "results": results})
    sys.stdout.write(f"{out}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

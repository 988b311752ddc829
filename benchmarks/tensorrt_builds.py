"""TensorRT for RTX engines of the full-size stages, built without a GPU: formats, fusions, kernels, seconds, peak memory.

    python3 -m benchmarks.tensorrt_builds [--only denoise,router] [--precision bfloat16,fp8] [--target rtx-5090] [--list]

Weights are random, so that nothing here speaks of accuracy, and nothing was timed on a GPU: kernels are only chosen there.
A structural check of what the library builds for sm_120 and sm_89.  One growing JSON under benchmarks/results/<device>/;
what it holds already is not built again.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.results import RESULTS, now_utc, slug
from edgewam.compile.backends.tensorrt import REWRITES_LEFT_OUT, build_graph
from edgewam.compile.layer_groups import in_layer_groups
from edgewam.compile.rewrites import fitting, rewrite
from edgewam.compile.tensorrt_engine import peak_memory_bytes
from edgewam.compile.tensorrt_onnx import export_onnx
from edgewam.compile.tensorrt_targets import find_target
from edgewam.core.artifacts import versions, write_json
from edgewam.core.observation import Normalizer
from edgewam.core.program import Program, Programs
from edgewam.core.stage import Stage
from edgewam.models import aha_wam
from edgewam.models.stage_layers import Turn
from edgewam.models.wan_vae import WanVae, WanVaeConfig
from edgewam.models.wan_vae_image import image_encoder
from edgewam.profiles.machine import read_machine
from edgewam.quantize.layers import Scales, find_layers, quantized, replace_layer

TARGETS = ("rtx-5090", "rtx-4090")
NUM_GROUPS = 6  # of planner layers; the four in the middle are alike, so that one of them stands for all
MAX_MEMORY_BYTES = 16e9  # of the exporting and the building process together
INPUT_SCALE = 0.05  # made up: the structure of an engine does not depend on it
# attentions with one head as wide as a whole embedding, which no fused kernel takes
WIDE_HEADS = {"router": 1, "image_encoder": 1}
# 14 action numbers in or out: no multiple of the 16 that 8-bit products want, and nothing to gain
KEPT = ("encoder", "head")
# stage -> precisions; fp8 is for linear layers only, so the VAE has none
STAGES: dict[str, tuple[str, ...]] = {
    "denoise": ("bfloat16", "fp8", "int8"),
    "image_encoder": ("bfloat16", "float16", "int8"),
    "router": ("bfloat16", "fp8", "int8"),
    "planner_0_5": ("bfloat16", "fp8", "int8"),
    "planner_5_10": ("bfloat16", "fp8", "int8"),
    "planner_25_30": ("bfloat16", "fp8", "int8"),
    "text": ("bfloat16", "fp8", "int8"),
    "state": ("bfloat16",),
    # with the exact rewrites that `compile` gives TensorRT (`compile/rewrites.py`)
    "rewritten/denoise": ("fp8", "bfloat16", "int8"),
    "rewritten/planner_5_10": ("fp8", "bfloat16", "int8"),
    "rewritten/router": ("fp8", "bfloat16", "int8"),
}
SMALL = ("text", "image_encoder", "planner", "router", "state", "begin", "denoise", "finish")
SMALL_PACKED = ("planner", "router", "denoise")  # what the named plans of `tensorrt` give 8 bits


def full_stage(name: str, dtype: torch.dtype) -> Stage:
    """One full-size stage in `dtype` with random weights; everything else stays on the meta device."""
    config = aha_wam.full()
    unit = Normalizer(np.zeros(config.action_dim, np.float32), np.ones(config.action_dim, np.float32))
    with torch.device("meta"):
        model = aha_wam.build(config).to(dtype)
        vae = WanVae(WanVaeConfig()).to(dtype)
    stages = aha_wam.stages(model, image_encoder(vae), unit, unit)
    if name.startswith("rewritten/"):
        stages = rewrite(stages, fitting(stages, REWRITES_LEFT_OUT))
    name = name.removeprefix("rewritten/")
    if name.startswith("planner"):
        stages, _ = in_layer_groups(stages, Programs((), {"plan": Program("plan", (), ())}, {}), NUM_GROUPS)
    stage = stages[name]
    assert isinstance(stage.function, nn.Module)
    _materialise(stage.function)
    return stage


def _materialise(module: nn.Module) -> None:
    """Give every tensor on the meta device memory and small random numbers; rotations become what they are."""
    numbers, count = 0.02 * torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)), 0
    for part in module.modules():
        for kind in (part._parameters, part._buffers):
            for key, value in kind.items():
                if value is not None and value.is_meta:
                    count += 1  # every tensor begins elsewhere: the library stores equal ones once
                    shifted = numbers.roll(count * 977).to(value.dtype)
                    made = shifted.repeat(-(-value.numel() // len(numbers)))[: value.numel()].reshape(value.shape)
                    kind[key] = nn.Parameter(made, requires_grad=False) if isinstance(value, nn.Parameter) else made
        if isinstance(part, Turn):
            part.partner = Turn(len(part.partner)).partner


def quantise_in_place(stage: Stage, kind: str) -> None:
    """Every layer of the stage but `KEPT` in `kind`, one after the other, so that weights are in memory once.

    Convolutions exist in int8 only, with scales of their results too.
    """
    module, scale = stage.function, torch.tensor(INPUT_SCALE)
    assert isinstance(module, nn.Module)
    for (_, path), layer in find_layers({stage.name: stage}).items():
        is_conv = isinstance(layer, nn.Conv2d)
        if path not in KEPT and (kind == "int8" or not is_conv):
            replace_layer(module, path, quantized(layer, Scales(kind, scale, scale if is_conv else None)))


def small_stages(dtype: torch.dtype) -> dict[str, Stage]:
    """Every stage of the policy that ships with the repository, in a half type, as `edgewam compile` plans it for TensorRT."""
    from edgewam.cli._shipped import shipped
    from edgewam.recipes.deploy import compile_plan

    precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    return dict(compile_plan(shipped("student"), "tensorrt", precision=precision, target=TARGETS[0]).stages)


def run(stage: Stage, names: list[str]) -> dict[str, dict[str, Any]]:
    """Export once, build for every target; figures by target."""
    began = time.monotonic()
    done = {}
    with tempfile.TemporaryDirectory() as work:
        graph = export_onnx(stage, Path(work))
        exported = time.monotonic() - began
        for name in names:
            record = build_graph(graph, stage.name, find_target(name), Path(work))
            del record["read_back"]["products"]  # their counts by format stay
            done[name] = {
                "when_utc": now_utc(),
                "export_seconds": round(exported, 1),
                "export_peak_memory_bytes": peak_memory_bytes(),
                "stage_weight_bytes": stage.cost.weight_bytes,
                **{key: value for key, value in record.items() if key not in ("file", "inputs", "outputs")},
            }
    return done


def one(name: str, precision: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """Figures of one stage of the full size, or of `small/<stage>`, by target."""
    kind = precision if precision in ("fp8", "int8") else None
    dtype = torch.bfloat16 if kind else getattr(torch, precision)
    stage = small_stages(dtype)[name.removeprefix("small/")] if name.startswith("small/") else full_stage(name, dtype)
    if kind:
        quantise_in_place(stage, kind)
    gc.collect()
    return run(stage, names)


def faults(builds: dict[str, Any]) -> list[str]:
    """What issue 4 asks for and a build does not show: planned formats, fused attention, memory."""
    found = []
    for name, figures in builds.items():
        stage, precision, _ = name.split()
        seen, attentions = figures["read_back"]["formats"], figures["read_back"]["attentions"]
        is_packed = precision in ("fp8", "int8")  # there a product that nothing is known of is not what the plan says
        kept = sum(seen.values()) - seen.get(precision, 0) - (0 if is_packed else seen.get("unknown", 0))
        if kept > len(KEPT):
            found.append(f"{name}: products in {seen}")
        if len(attentions["unfused"]) > WIDE_HEADS.get(stage.rpartition("/")[2], 0):
            found.append(f"{name}: attentions {attentions}")
        if (used := figures["export_peak_memory_bytes"] + figures["peak_memory_bytes"]) > MAX_MEMORY_BYTES:
            found.append(f"{name}: {used / 1e9:.1f} GB of memory")
    return found


def stored(path: Path) -> dict[str, Any]:
    """Figures of the builds that a results file holds."""
    return json.loads(path.read_text())["builds"] if path.exists() else {}


def todo(results: dict[str, Any], a: argparse.Namespace) -> list[tuple[str, str, list[str]]]:
    """(stage, precision, targets) that are asked for and not in the results."""
    small = {f"small/{name}": ("bfloat16", "float16", *(("fp8", "int8") if name in SMALL_PACKED else ())) for name in SMALL}
    asked = []
    for stage, precisions in {**STAGES, **small}.items():
        for precision in precisions:
            wanted = [t for t in a.target.split(",") if f"{stage} {precision} {t}" not in results]
            if wanted and (not a.only or stage in a.only.split(",")) and (not a.precision or precision in a.precision.split(",")):
                asked.append((stage, precision, wanted))
    return asked


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="stages, separated by commas")
    parser.add_argument("--precision", help="precisions, separated by commas")
    parser.add_argument("--target", default=",".join(TARGETS))
    parser.add_argument("--list", action="store_true", help="print what is left to build")
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: benchmarks/results/<device>)")
    a = parser.parse_args()
    cpu = read_machine().cpu
    path = (a.out or RESULTS / slug(cpu)) / "tensorrt_builds.json"
    left = todo(stored(path), a)
    if a.list:
        print("\n".join(f"{stage} {precision} {', '.join(names)}" for stage, precision, names in left))
        return 0
    if len(left) > 1:  # each in its own process: memory is measured and returned
        own = [sys.executable, "-m", "benchmarks.tensorrt_builds", "--target", a.target, "--out", str(path.parent)]
        ended = [subprocess.run([*own, "--only", stage, "--precision", precision]).returncode for stage, precision, _ in left]
        return 1 if any(ended) else 0
    torch.set_num_threads(1)
    made = {f"{stage} {kind} {name}": done for stage, kind, names in left for name, done in one(stage, kind, names).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"cpu": cpu, "versions": versions(), "builds": {**stored(path), **made}})  # read again: others write too
    print(json.dumps(made, indent=1), *(missed := faults(made)), sep="\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

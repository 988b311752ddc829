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
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.results import RESULTS, now_utc, slug
from edgewam.compile.backends.tensorrt import build_graph
from edgewam.compile.tensorrt_onnx import export_onnx
from edgewam.compile.tensorrt_targets import find_target
from edgewam.core.artifacts import versions, write_json
from edgewam.core.observation import Normalizer
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.models import aha_wam
from edgewam.models.aha_wam_planner_stage import PlannerStage
from edgewam.models.stage_cost import make_stage
from edgewam.models.stage_layers import Turn, apply, attention, modulated
from edgewam.models.wan_vae import WanVae, WanVaeConfig
from edgewam.models.wan_vae_image import image_encoder
from edgewam.profiles.machine import read_machine
from edgewam.quantize.layers import Scales, find_layers, quantized

TARGETS = ("rtx-5090", "rtx-4090")
GROUP = 5  # planner layers in one engine
MAX_MEMORY_BYTES = 16e9  # of the exporting and the building process together
INPUT_SCALE = 0.05  # made up: the structure of an engine does not depend on it
# 14 action numbers in or out: no multiple of the 16 that 8-bit products want, and nothing to gain
KEPT = ("encoder", "head")
# stage -> precisions; the VAE is never 8-bit floats (facts/performance.md), and fp16 is what it ships in
STAGES: dict[str, tuple[str, ...]] = {
    "denoise": ("bfloat16", "fp8", "int8"),
    "image_encoder": ("bfloat16", "float16"),
    "router": ("bfloat16", "fp8", "int8"),
    "planner_first": ("bfloat16", "fp8", "int8"),
    "planner_middle": ("bfloat16", "fp8", "int8"),
    "planner_last": ("bfloat16", "fp8", "int8"),
    "text": ("bfloat16", "fp8", "int8"),
    "state": ("bfloat16",),
}
SMALL = ("text", "image_encoder", "planner", "router", "state", "begin", "denoise", "finish")


class PlannerGroup(nn.Module):
    """Some neighbouring layers of the planner stage, as the whole stage computes them.

    x [tokens, D] (the latent [Cz, h, w] for the first group), memory [slots, n, 2, tokens, A], text [n, 2, R + 1, A]; other
    inputs as in `PlannerStage` -> x [tokens, D] (not from the last group), context [n, 2, tokens, A].
    """

    def __init__(self, planner: PlannerStage, first: int) -> None:
        super().__init__()
        last = first + GROUP
        self.num_heads = planner.num_heads
        self.patch = planner.patch if first == 0 else None
        self.qkv = planner.qkv[first:last]
        self.out, self.cross, self.ffn = planner.out[first:last], planner.cross[first:last], planner.ffn[first:last]
        self.register_buffer("rows", planner.rows[first:last], persistent=False)

    def forward(
        self, x: Tensor, memory: Tensor, memory_bias: Tensor, text: Tensor, text_bias: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, ...]:
        """See the class."""
        slots, _, _, tokens, _ = memory.shape
        if self.patch is not None:
            channels, height, width = x.shape
            x = x.reshape(channels, height // 2, 2, width // 2, 2).permute(1, 3, 0, 2, 4).reshape(tokens, 4 * channels)
            x = apply(self.patch, x).float()
        table = Turn.prepare(cos, sin)
        bias = torch.cat([memory_bias[:, None].expand(slots, tokens).reshape(-1), torch.zeros_like(cos[:, 0])])
        context = []
        for index, qkv in enumerate(self.qkv):
            shift1, scale1, gate1, shift2, scale2, gate2 = self.rows[index].unbind(0)
            q, own = qkv(modulated(x, shift1, scale1), table)
            context.append(own)
            if index == len(self.ffn):
                return (torch.stack(context),)
            k, v = torch.cat([memory[:, index].transpose(0, 1).flatten(1, 2), own], dim=1).unbind(0)
            x = x + gate1 * apply(self.out[index], attention(q, k, v, self.num_heads, bias))
            x = x + self.cross[index](x, text[index], text_bias[:-1])
            x = x + gate2 * self.ffn[index](modulated(x, shift2, scale2))
        return x, torch.stack(context)


def full_stage(name: str, dtype: torch.dtype) -> Stage:
    """One full-size stage in `dtype` with random weights; everything else stays on the meta device."""
    config = aha_wam.full()
    unit = Normalizer(np.zeros(config.action_dim, np.float32), np.ones(config.action_dim, np.float32))
    with torch.device("meta"):
        model = aha_wam.build(config).to(dtype)
        vae = WanVae(WanVaeConfig()).to(dtype)
    stages = aha_wam.stages(model, image_encoder(vae), unit, unit)
    stage = _planner_group(stages["planner"], name) if name.startswith("planner") else stages[name]
    assert isinstance(stage.function, nn.Module)
    _materialise(stage.function)
    return stage


def _planner_group(planner: Stage, name: str) -> Stage:
    module = planner.function
    assert isinstance(module, PlannerStage)
    num_layers = len(module.qkv)
    first = {"planner_first": 0, "planner_middle": GROUP, "planner_last": num_layers - GROUP}[name]
    memory, text, context = planner.input("memory"), planner.input("planner_text"), planner.output("context")
    slots, _, _, tokens, width = memory.shape
    hidden = TensorSpec("x", (tokens, module.out[0].out_features))
    inputs = (
        planner.input("latent") if first == 0 else hidden,
        TensorSpec("memory", (slots, GROUP, 2, tokens, width), memory.dtype),
        planner.input("memory_bias"),
        TensorSpec("planner_text", (GROUP, *text.shape[1:]), text.dtype),
        *(planner.input(n) for n in ("key_bias", "frame_cos", "frame_sin")),
    )
    outputs = [TensorSpec("context", (GROUP, 2, tokens, width), context.dtype)]
    if first + GROUP < num_layers:
        outputs.insert(0, TensorSpec("x_next", hidden.shape))
    return make_stage(name, PlannerGroup(module, first), inputs, tuple(outputs), tokens)


def _materialise(module: nn.Module) -> None:
    """Give every tensor on the meta device memory and small random numbers; rotations become what they are."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        for kind in (part._parameters, part._buffers):
            for key, value in kind.items():
                if value is not None and value.is_meta:
                    made = torch.empty(value.shape, dtype=value.dtype).normal_(0, 0.02, generator=generator)
                    kind[key] = nn.Parameter(made, requires_grad=False) if isinstance(value, nn.Parameter) else made
        if isinstance(part, Turn):
            part.partner = Turn(len(part.partner)).partner


def quantise_in_place(stage: Stage, kind: str) -> None:
    """Every linear layer of the stage but `KEPT` in `kind`, one after the other, so that weights are in memory once."""
    for (_, path), layer in find_layers({stage.name: stage}).items():
        if isinstance(layer, nn.Linear) and path not in KEPT:
            parent, _, key = path.rpartition(".")
            setattr(stage.function.get_submodule(parent), key, quantized(layer, Scales(kind, torch.tensor(INPUT_SCALE))))


def small_stages(dtype: torch.dtype) -> dict[str, Stage]:
    """Every stage of the policy that ships with the repository, in a half type."""
    from edgewam.cli._shipped import shipped
    from edgewam.training.policy_artifact import load_policy

    loaded = load_policy(shipped("student"))
    arguments = (image_encoder(loaded.vae.to(dtype)), loaded.stats.state, loaded.stats.action)
    return aha_wam.stages(loaded.model.to(dtype).requires_grad_(False), *arguments)


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
            own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            done[name] = {
                "when_utc": now_utc(),
                "export_seconds": round(exported, 1),
                "export_peak_memory_bytes": own,
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


def todo(results: dict[str, Any], a: argparse.Namespace) -> list[tuple[str, str, list[str]]]:
    """(stage, precision, targets) that are asked for and not in the results."""
    small = {
        f"small/{name}": ("bfloat16", "float16")
        for name in ("text", "image_encoder", "planner", "router", "state", "begin", "denoise", "finish")
    }
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
    results = json.loads(path.read_text())["builds"] if path.exists() else {}
    left = todo(results, a)
    if a.list:
        print("\n".join(f"{stage} {precision} {', '.join(names)}" for stage, precision, names in left))
        return 0
    torch.set_num_threads(1)
    for stage, precision, names in left:
        for target, figures in one(stage, precision, names).items():
            results[f"{stage} {precision} {target}"] = figures
            print(stage, precision, target, json.dumps(figures), flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"cpu": cpu, "versions": versions(), "builds": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())

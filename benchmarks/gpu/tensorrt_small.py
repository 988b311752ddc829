"""The student that ships with edgewam as TensorRT bundles for this card, bf16 and FP8: built, proved, opened as graphs, timed.

FP8 scales are made up, since no dataset is at hand: engines are compared with eager at the same scales, and the accuracy of the
policy is not judged.  Without a GPU the bundles are only built, and their sections say so.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.gpu_clock import gpu_contract
from benchmarks.gpu.jobs import Emit, Job
from benchmarks.gpu.tensorrt_target import target_here
from benchmarks.results import Section
from edgewam.cli._shipped import shipped
from edgewam.compile.compile import compile_bundle
from edgewam.compile.plan import CompilePlan
from edgewam.compile.tensorrt_targets import Target
from edgewam.core import plugins
from edgewam.core.artifacts import Manifest, read_manifest
from edgewam.core.errors import EdgewamError
from edgewam.profiles.measure import Timing, measure
from edgewam.quantize.formats import NONE
from edgewam.quantize.layers import Scales, find_layers, quantized, with_layers
from edgewam.quantize.named import named_plan
from edgewam.quantize.steps import with_scale_rows, with_scale_tables
from edgewam.recipes.deploy import compile_plan
from edgewam.recipes.quantization import _unsteady_stages
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.measure import contract_of

BASE = "bf16"
FIGURES = ("L_chunk", "L_prefill")
INPUT_SCALE = 0.05  # made up: 448 codes reach to 22, which normalised activations stay below
NOT_JUDGED = "made-up activation scales: accuracy is not judged"


def run(job: Job, device: str, emit: Emit) -> None:
    """Sections `<precision>_bundle`, then `<precision>_L_chunk` and `<precision>_L_prefill` where a GPU runs it.

    Raises:
        EdgewamError: a bundle that was not built or did not prove itself, after the other one had its turn.
    """
    target, failed = target_here(device), []
    for precision in job.params["precisions"]:
        try:
            _bundle(job, device, target, precision, emit)
        except EdgewamError as error:
            traceback.print_exc()
            failed.append(f"{precision}: {error}")
    if failed:
        raise EdgewamError("\n".join(failed))


def planned(precision: str, target: str, layer_groups: int) -> CompilePlan:
    """The shipped student for a target, in bf16, or with FP8 where the named plan `fp8` has it."""
    plan = compile_plan(shipped("student"), "tensorrt", precision=BASE, target=target, layer_groups=layer_groups)
    return plan if precision == BASE else with_made_up_scales(plan, precision)


def with_made_up_scales(plan: CompilePlan, name: str) -> CompilePlan:
    """The plan with the layers of a named precision plan in 8 bits, as `quantize` would have left them but for the scales."""
    layers = find_layers(plan.stages)
    rules = named_plan(name, layers, _unsteady_stages(plan), plan.backend)
    loops = [program.loop for program in plan.programs.programs.values() if program.loop]
    steps = {call.stage: loop.num_rows for loop in loops for call in loop.calls if rules.per_step}
    made = {}
    for key, rule in rules.resolve(layers).items():
        if rule.format != NONE:
            scale = torch.full((steps[key[0]],) if key[0] in steps else (), INPUT_SCALE)
            made[key] = quantized(layers[key], Scales(rule.format, scale))
    stages = with_scale_rows(with_layers(plan.stages, made))
    config = {**plan.config, "precision": f"{name}+{BASE}"}
    return replace(plan, stages=stages, programs=with_scale_tables(plan.programs, stages), config=config)


def _bundle(job: Job, device: str, target: Target, precision: str, emit: Emit) -> None:
    """Build one bundle, say what is in it, and run it where there is a GPU."""
    if precision != BASE and precision not in target.formats:
        made = _contract(device, target, precision, ("none",), {})
        return emit(f"{precision}_bundle", Section(made, {"refused": f"'{target.name}' ({target.sm}) has no {precision} units"}))
    plan = planned(precision, target.name, job.params["layer_groups"])
    with tempfile.TemporaryDirectory(prefix="edgewam_tensorrt_") as work:
        start = time.monotonic()
        path = compile_bundle(plan, Path(work) / "bundle")
        built = Timing.from_samples([(time.monotonic() - start) * 1e3])
        manifest = read_manifest(path, kind="bundle")
        figures = built_figures(manifest) | ({} if precision == BASE else {"scales": NOT_JUDGED})
        shapes = {spec.name: spec.shape for spec in plan.programs.programs["act"].inputs}
        made = _contract(device, target, plan.config["precision"], tuple(plan.stages), shapes)
        if device == "cpu":
            figures |= {"ran": f"no: a processor runs no TensorRT engine; built for {target.name} only"}
            return emit(f"{precision}_bundle", Section(made, figures, {"compile": built}))
        start = time.monotonic()
        bundle = Bundle.open(path)  # tests itself against eager, and captures
        figures |= {"open_s": time.monotonic() - start} | run_figures(manifest, bundle.pipeline.captured)
        emit(f"{precision}_bundle", Section(made, figures, {"compile": built}))
        policy = plugins.load("policy", str(bundle.policy))
        calls, n, warmup = policy.timed_calls(bundle), job.params["n"], job.params["warmup"]
        for name in FIGURES:
            wall = measure(calls[name], n, warmup)
            made = contract_of(bundle, name, policy.FIGURE_PROGRAMS[name], n, warmup)
            emit(f"{precision}_{name}", Section(made, {"target": target.name}, {name: wall}))


def built_figures(manifest: Manifest) -> dict[str, Any]:
    """Of every engine of a bundle, as it was read back: kernels, formats of its products, fused attentions."""
    records = {entry["stage"]["name"]: entry["record"] for entry in manifest.config["stages"]}
    first = next(iter(records.values()))
    figures: dict[str, Any] = {"target": first["target"], "library": f"{first['library']} {first['version']}"}
    for name, record in records.items():
        seen = record["read_back"]
        figures[f"{name}_kernels"] = seen["kernels"]
        figures[f"{name}_formats"] = ", ".join(f"{kind} {count}" for kind, count in sorted(seen["formats"].items())) or "none"
        figures[f"{name}_attentions_fused"] = f"{seen['attentions']['fused']} of {seen['attentions']['found']}"
    return figures


def run_figures(manifest: Manifest, captured: tuple[str, ...]) -> dict[str, Any]:
    """What a bundle that was proved here says: graphs, and the worst deviation from eager, relative to an output's maximum."""
    programs = manifest.measured["programs"]
    worst = max(programs, key=lambda name: programs[name]["relative"])
    figures = {f"graph_{name}": found for name, found in manifest.measured["graphs"].items()}
    return figures | {
        "graphs_opened": ", ".join(captured) or "none", "off_eager": float(programs[worst]["relative"]), "off_eager_in": worst,
    }  # fmt: skip


def _contract(device: str, target: Target, precision: str, stages: tuple[str, ...], shapes: dict[str, tuple[int, ...]]) -> Any:
    """Of the build: one, on the wall clock."""
    return gpu_contract(
        device, engine=f"{target.library}, built for {target.name}", precision=precision, steps=0, shapes=shapes, stages=stages,
        host_copies=False, warmup=0, n=1, clock="wall", notes="compile: built, compared with eager, captured where a GPU is",
    )  # fmt: skip

"""`edgewam compile`: every stage of a policy through a backend, proved against the eager reference, into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewam.cli._output import Json, emit, say, table


def command(
    policy: Annotated[Path, typer.Argument(help="Policy or student directory, as `train` and `distill` write them.")],
    out: Annotated[Path, typer.Argument(help="Bundle directory to write.")],
    backend: Annotated[
        str, typer.Option(help="onnxruntime, eager, inductor, fused, tensorrt, torch_tensorrt, or the dotted name of another.")
    ] = "onnxruntime",
    target: Annotated[
        str | None,
        typer.Option(help="Device to build for, which need not be here (tensorrt): rtx-5090, gb10, thor, ..."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where eager, inductor and fused compute here: cpu, or cuda.")] = "cpu",
    steps: Annotated[
        int | None, typer.Option(help="Action sampler steps; by default 10 for a teacher, 2 for a student.", min=1)
    ] = None,
    precision: Annotated[str, typer.Option(help="Of what no plan quantises: float32, bf16 or fp16.")] = "float32",
    rewrites: Annotated[
        bool | None,
        typer.Option("--rewrites/--no-rewrites", help="Exact rewrites; by default where the backend gains."),
    ] = None,
    layer_groups: Annotated[
        int, typer.Option(help="Split the planner into so many stages, so that chunks get the device between them.", min=1)
    ] = 1,
    prompt: Annotated[list[str] | None, typer.Option(help="A further instruction to embed; repeatable.")] = None,
    threads: Annotated[int, typer.Option(help="Compute threads while the bundle proves itself.", min=1)] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print stages, sizes and memory, and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Compile a policy into the bundle that goes to the robot."""
    from edgewam.compile.compile import compile_bundle
    from edgewam.core import plugins
    from edgewam.core.artifacts import read_manifest
    from edgewam.recipes.deploy import compile_plan

    plan = compile_plan(policy, backend, steps, tuple(prompt or ()), threads, precision, target, device, rewrites, layer_groups)
    description = plan.describe()
    rows = [
        [name, stage["weight_bytes"] / 1e6, stage["flops"] / 1e6, ", ".join(f"{n} x{c}" for n, c in stage["calls"].items())]
        for name, stage in description["stages"].items()
    ]
    table(f"{plan.family}, backend {backend}", ["stage", "weights MB", "MFLOP a call", "called by"], rows)
    remark = getattr(plugins.load("backend_build", backend), "remark", None)
    if remark and (text := remark(plan.build_options)):
        say(text)
    if dry_run:
        say(f"Needs about {description['memory_estimate_bytes'] / 1e6:.0f} MB of memory. Nothing was written.")
        return emit(description, as_json)
    compile_bundle(plan, out)
    manifest = read_manifest(out, kind="bundle")
    programs = manifest.measured.get("programs", {})
    rows = [[name, d["max_abs"], d["relative"]] for name, d in programs.items()]
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    say(f"Bundle {out}, digest {manifest.digest[:12]}, {size / 1e6:.1f} MB.")
    say(
        "Largest deviation from eager, per program:"
        if programs
        else f"It was built for {manifest.config['device']['name']}, where it proves itself when it is opened, to a tenth of "
        "each result's maximum; nothing ran here. There, run: edgewam validate BUNDLE POLICY DATASET"
    )
    for name, absolute, relative in rows:
        say(f"  {name}: {absolute:.2e} absolute, {relative:.2e} of the output's maximum")
    emit({"bundle": str(out), "digest": manifest.digest, "size_bytes": size, "measured": manifest.measured}, as_json)

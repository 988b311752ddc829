"""`edgewam quantize`: INT8 or FP8 layers or weights alone, calibrated on recorded frames, each layer's error measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgewam.cli._output import Json, emit, progress, say, table

_NAMED_LAYERS = 3  # of those with the largest errors


def command(
    policy: Annotated[Path, typer.Argument(help="Policy or student directory, as `train` and `distill` write them.")],
    dataset: Annotated[Path, typer.Argument(help="Dataset whose frames calibrate; recordings of the policy's own tasks.")],
    out: Annotated[Path, typer.Argument(help="Directory of the quantised policy to write.")],
    plan: Annotated[
        str,
        typer.Option(
            help="int8, fp8, fp8_weights, int4_weights, auto (chosen by measured error and time), or a plan file's path."
        ),
    ] = "auto",
    backend: Annotated[
        str | None,
        typer.Option(
            help="What will run it: onnxruntime (int8), eager or tensorrt (int8, fp8), fused (but auto). By default the plan's."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Action sampler steps; by default the policy's own.", min=1)] = None,
    episodes: Annotated[int | None, typer.Option(help="Episodes to calibrate on, spread over the dataset.", min=1)] = None,
    frames: Annotated[int | None, typer.Option(help="Frames behind the error of all layers together.", min=1)] = None,
    threads: Annotated[int, typer.Option(help="Threads of the engine that layers are timed in.", min=1)] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the layers and their formats, and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Quantise a policy: calibrate on real frames, measure each layer alone, and say why each has its format."""
    from edgewam.core.artifacts import read_manifest
    from edgewam.recipes.quantization import EPISODES, FRAMES, plan_quantization, quantize_policy

    chosen = plan_quantization(policy, plan, steps, threads, backend)
    if dry_run:
        description = chosen.describe()
        rows = [
            [r["stage"], r["layer"], "x".join(map(str, r["shape"])), r["float32_bytes"] / 1e3, r["format"]]
            for r in description["layers"]
        ]
        table(f"plan {chosen.name}, for {chosen.precision.backend}", ["stage", "layer", "weight", "float32 kB", "format"], rows)
        if chosen.name == "auto":
            say("These are the candidates; measurements decide which of them stay float32.")
        say(f"Needs about {description['memory_estimate_bytes'] / 1e6:.0f} MB of memory. Nothing was written.")
        return emit(description, as_json)
    with progress("quantize") as update:
        measured = quantize_policy(
            chosen, dataset, out, num_episodes=episodes or EPISODES, num_frames=frames or FRAMES, threads=threads,
            report=lambda what, done, total: update(done, total, note=what),
        )  # fmt: skip
    show(measured)
    digest = read_manifest(out).digest
    say(f"Wrote {out}, digest {digest[:12]}, in {measured['seconds']:.0f} s.")
    say(f"Next: edgewam compile {out} BUNDLE{chosen.precision.compile_options}")
    emit({"quantized": str(out), "digest": digest, **measured}, as_json)


def show(measured: dict[str, Any]) -> None:
    """The table of layers and the whole, on stderr; times only where layers were timed (for ONNX Runtime)."""
    layers = measured["layers"]
    timed = any(row["float32_ms"] for row in layers)
    rows = [
        [
            row["stage"], row["layer"], row["format"],
            *([row["float32_ms"] * 1e3, row["ms"].get(row["format"], row["float32_ms"]) * 1e3] if timed else []),
            row["reason"],
        ]
        for row in layers
    ]  # fmt: skip
    table("one layer at a time", ["stage", "layer", "format", *(["float32 us", "us"] if timed else []), "why"], rows)
    size = measured["bytes"]
    say(
        f"{size['layers']} layers quantised: {size['float32'] / 1e6:.2f} MB of float32 weights became "
        f"{size['packed'] / 1e6:.2f} MB ({size['float32'] / max(size['packed'], 1):.2f}x smaller); "
        f"{size['float32_elsewhere'] / 1e6:.2f} MB stay float32."
    )
    say(
        f"Excess error ratio of all layers together: median {measured['excess_error_median']:.3f}, "
        f"p99 {measured['excess_error_p99']:.3f} over {measured['num_frames']} frames."
    )
    if text := over_limits(measured):
        say(text)


def over_limits(measured: dict[str, Any]) -> str:
    """What it means and what to do where the error is beyond that of a policy to deploy; empty within the limits."""
    from edgewam.compile.excess_error import QUANTIZED_LIMITS as LIMITS

    if measured["excess_error_median"] <= LIMITS.median and measured["excess_error_p99"] <= LIMITS.p99:
        return ""
    layers = [row for row in measured["layers"] if row["format"] != "none"]
    worst = sorted(layers, key=lambda row: -row["error"].get(row["format"], 0.0))[:_NAMED_LAYERS]
    # where 8-bit floats are the error, 8-bit integers have less of it
    int8 = "use --plan int8, " if any(row["format"] == "fp8" for row in layers) else ""
    return (
        f"WARNING: over the limits of a quantised policy, median {LIMITS.median:g} and p99 {LIMITS.p99:g} of the policy's "
        "own spread: its actions differ too much from those of the policy that it was made from, and `edgewam validate` "
        f"is likely to refuse its bundle. To lower it, {int8}use --plan auto (for onnxruntime: it leaves layers in float32 until "
        f"the error is within limits), or give layers the format none in a plan file; the largest errors alone have "
        f"{', '.join(row['stage'] + '.' + row['layer'] for row in worst)}."
    )

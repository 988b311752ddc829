"""Build half of `eager`: one stage as a torch.export program (`.pt2`), which runs without edgewam's model code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from edgewam.compile.build_options import ANY_MACHINE, BuildOptions
from edgewam.compile.exporting import as_module, example_inputs, exporting, quiet
from edgewam.core.stage import Stage
from edgewam.quantize.layers import quantized_layers
from edgewam.runtime.engine import Support

# rounded as the engines would, multiplied in float32
FORMATS = ("int8", "int8_dynamic", "int8_weights", "fp8", "fp8_weights", "int4_weights")
STEP_SCALES = True  # takes one activation scale per step of the sampler
PRECISIONS = ("float32", "bf16", "fp16")
TOLERANCE = 2e-6  # the same operators; loaded weights may lie at another alignment, where products are summed in another order


def supports(stage: Stage) -> Support:
    """Every stage with a function can be exported."""
    if stage.function is None:
        return Support(False, f"stage '{stage.name}' was read from a manifest and has no function to export")
    return Support(True)


def supports_float(stage: Stage, backend: str) -> Support:
    """The same for backends that take the exported program but compute in its float types only."""
    for path, layer in quantized_layers(stage).items():
        return Support(
            False,
            f"stage '{stage.name}' has its layer '{path}' in {layer.kind.name}, which {backend} would multiply in float32. "
            "Compile for onnxruntime (int8), tensorrt (int8, fp8) or, also with weights alone, --backend fused, or compile the "
            "policy that was not quantised",
        )
    return supports(stage)


def check(options: BuildOptions) -> None:
    """Its stages are for any machine, so a target is refused."""
    options.refuse_target("eager")


def build(stage: Stage, directory: Path, options: BuildOptions = ANY_MACHINE) -> dict[str, Any]:
    """Write `<stage>.pt2` into `directory` and return the record that the run half reads."""
    with exporting(stage), quiet():
        program = export_program(stage)
        stored = io.BytesIO()  # torch's own file writer turns a full disk into a stack dump
        torch.export.save(program, stored)
    file = f"{stage.name}.pt2"
    (directory / file).write_bytes(stored.getvalue())
    return {"file": file}


def export_program(stage: Stage) -> torch.export.ExportedProgram:
    """The stage as a graph of torch's operators on the CPU, with its weights."""
    return torch.export.export(as_module(stage), example_inputs(stage), strict=False)

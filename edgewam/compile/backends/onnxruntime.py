"""Build half of `onnxruntime`: one stage exported to ONNX, quantised layers as integer nodes, made small, checked by onnx."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import torch

from edgewam.compile.build_options import ANY_MACHINE, BuildOptions
from edgewam.compile.exporting import as_module, example_inputs, exporting, quiet
from edgewam.compile.integer_onnx import FORMATS, make_integer
from edgewam.compile.onnx_weights import compact
from edgewam.core.errors import require
from edgewam.core.stage import Stage
from edgewam.quantize.layers import as_float, quantized_layers
from edgewam.runtime.engine import Support

OPSET = 20  # the newest one without fused Attention nodes, whose CPU kernels are younger than the plain ones
TOLERANCE = 5e-5  # relative to the output's maximum: float32 sums in another order, a few thousand terms
_DTYPES = ("float32", "float16", "int64", "int32", "int8", "uint8", "bool")


def supports(stage: Stage) -> Support:
    """The CPU provider has no bfloat16 or float8 kernels; float64 would silently lose its point in an embedded engine."""
    if stage.function is None:
        return Support(False, f"stage '{stage.name}' was read from a manifest and has no function to export")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            return Support(False, f"the package '{package}' is not installed; install it with: pip install 'edgewam[onnx]'")
    for spec in (*stage.inputs, *stage.outputs):
        if spec.dtype not in _DTYPES:
            return Support(False, f"stage '{stage.name}' has '{spec.name}' in {spec.dtype}; use one of {', '.join(_DTYPES)}")
    for path, layer in quantized_layers(stage).items():
        if layer.kind.name not in FORMATS:
            return Support(
                False,
                f"stage '{stage.name}' has its layer '{path}' in {layer.kind.name}, which the CPU provider would turn back into "
                f"float32; it computes in {', '.join(FORMATS)}. Quantise with --plan int8, or compile for the backend eager",
            )
    return Support(True)


def check(options: BuildOptions) -> None:
    """Its stages are for any machine, so a target is refused."""
    options.refuse_target("onnxruntime")


def build(stage: Stage, directory: Path, options: BuildOptions = ANY_MACHINE) -> dict[str, Any]:
    """Write `<stage>.onnx` into `directory` and return the record that the run half reads."""
    onnx = require("onnx", extra="onnx")
    require("onnxscript", extra="onnx")
    with exporting(stage), quiet(), contextlib.redirect_stdout(io.StringIO()):
        program = torch.export.export(as_module(as_float(stage)), example_inputs(stage), strict=False)
        exported = torch.onnx.export(
            program,
            input_names=[spec.name for spec in stage.inputs],
            output_names=[spec.name for spec in stage.outputs],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        assert exported is not None, "the exporter returns a program unless it is given a file"
        model = exported.model_proto
        make_integer(model, quantized_layers(stage))
        model = compact(model)
        for node in model.graph.node:
            del node.metadata_props[:]  # stack traces of the build machine
            node.doc_string = ""
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
            del value.metadata_props[:]
        del model.graph.value_info[:]  # intermediate shapes are inferred again at load
        del model.graph.metadata_props[:]
        onnx.checker.check_model(model, full_check=True)
    file = f"{stage.name}.onnx"
    (directory / file).write_bytes(model.SerializeToString())
    return {"file": file, "opset": OPSET}

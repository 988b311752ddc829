"""Build half of `onnxruntime`: one stage exported to ONNX, quantised layers as integer nodes, made small, checked by onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewam.compile.build_options import ANY_MACHINE, BuildOptions
from edgewam.compile.exporting import exporting, quiet
from edgewam.compile.integer_onnx import FORMATS, make_integer
from edgewam.compile.onnx_export import can_export, to_onnx
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
    undone = "the CPU provider would turn back into float32"
    advice = "Quantise with --plan int8, or compile for the backend eager; weights alone stay packed with --backend fused"
    return can_export(stage, ("onnxruntime",), _DTYPES, FORMATS, undone, advice)


def check(options: BuildOptions) -> None:
    """Its stages are for any machine's processor, so a target or a device is refused."""
    options.refuse_target("onnxruntime")
    options.refuse_device("onnxruntime")


def build(stage: Stage, directory: Path, options: BuildOptions = ANY_MACHINE) -> dict[str, Any]:
    """Write `<stage>.onnx` into `directory` and return the record that the run half reads."""
    onnx = require("onnx", extra="onnx")
    with exporting(stage), quiet():
        model = to_onnx(as_float(stage), OPSET).model_proto
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

"""A stage through PyTorch's ONNX exporter, and whether it can go that way: what both ONNX backends share."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Collection
from typing import Any

import torch

from edgewam.compile.exporting import as_module, example_inputs
from edgewam.core.errors import require
from edgewam.core.stage import Stage
from edgewam.quantize.layers import quantized_layers
from edgewam.runtime.engine import Support

PACKAGES = ("onnx", "onnxscript")


def can_export(
    stage: Stage, packages: Collection[str], dtypes: Collection[str], formats: Collection[str], undone: str, advice: str
) -> Support:
    """Whether a stage has code, the packages are here, and the backend has its dtypes and the formats of its layers.

    undone: what the backend would do with a layer of another format.  advice: what the user can do then.
    """
    if stage.function is None:
        return Support(False, f"stage '{stage.name}' was read from a manifest and has no function to export")
    for package in (*PACKAGES, *packages):
        if importlib.util.find_spec(package) is None:
            return Support(False, f"the package '{package}' is not installed; install it with: pip install 'edgewam[onnx]'")
    for spec in (*stage.inputs, *stage.outputs):
        if spec.dtype not in dtypes:
            return Support(False, f"stage '{stage.name}' has '{spec.name}' in {spec.dtype}; use one of {', '.join(dtypes)}")
    for path, layer in quantized_layers(stage).items():
        if layer.kind.name not in formats:
            return Support(
                False,
                f"stage '{stage.name}' has its layer '{path}' in {layer.kind.name}, which {undone}; it computes in "
                f"{', '.join(formats)}. {advice}",
            )
    return Support(True)


def to_onnx(stage: Stage, opset: int) -> Any:
    """The exporter's program (`.model` in onnx_ir, `.model_proto`), with inputs and outputs named as the stage names them.

    Call it inside `exporting(stage)` and `quiet()`, around what is done with it afterwards too.
    """
    require("onnxscript", extra="onnx")
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.export.export(as_module(stage), example_inputs(stage), strict=False)
        exported = torch.onnx.export(
            program,
            input_names=[spec.name for spec in stage.inputs],
            output_names=[spec.name for spec in stage.outputs],
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert exported is not None, "the exporter returns a program unless it is given a file"
    return exported

"""Build half of `torch_tensorrt`: the exported program through Torch-TensorRT's dynamo frontend, as one engine for this card.

It builds where it runs.  Types are those of the program (strong typing); nothing may stay behind in PyTorch, because a stage
that is half an engine would be slower than either without a word.
"""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

from torch import fx

from edgewam.compile.backends import eager
from edgewam.compile.build_options import ANY_MACHINE, BuildOptions
from edgewam.compile.exporting import example_inputs, exporting, quiet
from edgewam.compile.rewrites import NOT_LAYERWISE
from edgewam.core.errors import EdgewamError, GateError, require
from edgewam.core.stage import Stage
from edgewam.runtime.backends import torch_tensorrt as run
from edgewam.runtime.backends.eager import move_program
from edgewam.runtime.engine import EngineOptions, Support

PRECISIONS = ("float32", "bf16", "fp16")
REWRITES_LEFT_OUT = NOT_LAYERWISE
TOLERANCE = 1e-4  # float32 without TF32: sums in another order, and TensorRT may reorder them over whole chains of products
# Read in `torch_tensorrt.dynamo.compile` of 2.11 to 2.14.
SETTINGS = {
    "use_explicit_typing": True,  # what 2.13 and later always do
    "require_full_compilation": True,
    "min_block_size": 1,  # by default a stage of fewer than 5 operators stays in PyTorch without an error
    "immutable_weights": True,
    "attn_bias_is_causal": False,  # by default any mask of square attention is taken to be the causal one
    "disable_tf32": True,  # float32 is for stages that need it
}
# of `torch_tensorrt.save`; protocol 2, its default, ends at engines of 4 GB
FORMAT = {"output_format": "exported_program", "retrace": True, "pickle_protocol": 4}
_DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")
_ENGINE = "_run_on_acc"  # in the names that the partitioner gives to the parts that become engines


def supports(stage: Stage) -> Support:
    """Whether Torch-TensorRT works here, and the stage can be exported and has no types that TensorRT lacks."""
    if not (support := eager.supports_float(stage, "Torch-TensorRT")).ok:
        return support
    for spec in (*stage.inputs, *stage.outputs):
        if spec.dtype not in _DTYPES:
            return Support(False, f"stage '{stage.name}' has '{spec.name}' in {spec.dtype}; use one of {', '.join(_DTYPES)}")
    return run.supports()


def check(options: BuildOptions) -> None:
    """Its stages are for any machine, so a target is refused."""
    options.refuse_target("torch_tensorrt")


def build(stage: Stage, directory: Path, options: BuildOptions = ANY_MACHINE) -> dict[str, Any]:
    """Write `<stage>.ep` into `directory` and return the record that the run half reads.

    Raises:
        EdgewamError: the stage cannot be exported, or TensorRT cannot take all of it.
        GateError: a part of it stayed in PyTorch.
    """
    package = require("torch_tensorrt", extra="tensorrt")
    torch = require("torch", extra="train")
    device = torch.device(run.gpu(EngineOptions(device=options.device)))
    with exporting(stage), quiet():
        program = move_program(eager.export_program(stage), str(device))
    inputs = tuple(tensor.to(device) for tensor in example_inputs(stage))
    file = f"{stage.name}.ep"
    try:
        with torch.no_grad(), quiet():
            module = package.dynamo.compile(program, arg_inputs=inputs, device=device, **SETTINGS)
            _require_one_engine(stage, module)
            package.save(module, str(directory / file), arg_inputs=inputs, **FORMAT)
    except EdgewamError:
        raise
    except Exception as error:  # converters, TensorRT and the partitioner have no common base
        raise EdgewamError(
            f"Torch-TensorRT {package.__version__} cannot make one engine of stage '{stage.name}': {type(error).__name__}: "
            f"{error}. Compile with --backend tensorrt, which goes through ONNX, or with --backend inductor."
        ) from error
    return {"file": file, **run.build_facts(str(device))}


def _require_one_engine(stage: Stage, module: fx.GraphModule) -> None:
    """Raise GateError unless the compiled graph is one engine and the unpacking of its outputs."""
    parts = [node for node in module.graph.nodes if node.op.startswith("call_") and node.target is not operator.getitem]
    left = [str(node.target) for node in parts if _ENGINE not in str(node.target)]
    if left or len(parts) != 1:
        what = f"left {', '.join(left)} in PyTorch" if left else f"made {len(parts)} engines"
        raise GateError(
            f"Torch-TensorRT {what} of stage '{stage.name}', which must be one engine. Compile with --backend tensorrt, or with "
            "--backend inductor."
        )

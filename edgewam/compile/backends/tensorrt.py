"""Build half of `tensorrt`: one stage to ONNX with explicit Q/DQ, to an engine for one target, read back before it counts.

TensorRT for RTX builds for its cards on any machine, full TensorRT only on the device itself (`tensorrt_targets`).
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewam.compile.build_options import ANY_MACHINE, BuildOptions
from edgewam.compile.engine_reuse import engine_key, taken_from
from edgewam.compile.onnx_export import can_export
from edgewam.compile.rewrites import NOT_LAYERWISE
from edgewam.compile.tensorrt_engine import build_in_child
from edgewam.compile.tensorrt_onnx import ExportedGraph, export_onnx
from edgewam.compile.tensorrt_qdq import FORMATS
from edgewam.compile.tensorrt_readback import read_back
from edgewam.compile.tensorrt_targets import Target, find_target
from edgewam.core.stage import Stage
from edgewam.quantize.layers import quantized_layers
from edgewam.runtime import tensorrt_api
from edgewam.runtime.engine import Support
from edgewam.runtime.tensorrt_api import DTYPES, LIBRARIES

__all__ = ["FORMATS", "PRECISIONS", "STEP_SCALES", "TOLERANCE", "build", "build_graph", "runtime_of", "supports"]

# Relative to the output's maximum, of a float32 stage: TF32 is off, sums come in another order, exp and tanh are a GPU's own.
# Not measured: no engine of ours has run yet.
TOLERANCE = 1e-4
STEP_SCALES = True  # they divide and multiply around a product whose own scale is the constant 1
REWRITES_LEFT_OUT = NOT_LAYERWISE
# Of a bundle that was built elsewhere: both libraries are made for CUDA 13, and this is its first driver (release notes of CUDA
# 13.0, from general knowledge).
LEAST_DRIVER = "580.65"
SETTINGS_VERSION = 1  # of what the builder is told (`tensorrt_engine`); another one builds every engine again
PRECISIONS = ("float32", "bf16", "fp16")


def supports(stage: Stage) -> Support:
    """Whether the stage can be exported and its formats are ones that TensorRT multiplies in."""
    undone = "TensorRT would turn back into a half type"
    advice = "Quantise with --plan int8 or --plan fp8; weights alone stay packed with --backend fused"
    support = can_export(stage, (), DTYPES, FORMATS, undone, advice)
    if support.ok and not any(importlib.util.find_spec(module) for module, _ in LIBRARIES.values()):
        how = "neither 'tensorrt_rtx' nor 'tensorrt' is installed; install the first with: pip install 'edgewam[rtx]'"
        return Support(False, how)
    return support


def check(options: BuildOptions) -> None:
    """Refuse what cannot be built here before any work is done.

    Raises:
        PluginError: no target, an unknown one, or one whose engines are built on another GPU.
        MissingExtraError: the target's library is not installed.
    """
    find_target(options.target).require_here()


def build(stage: Stage, directory: Path, options: BuildOptions = ANY_MACHINE) -> dict[str, Any]:
    """Write `<stage>.engine` into `directory` and return the record that the run half reads.

    An engine of the bundle that is being replaced is taken over when everything that it was built from is the same.

    Raises:
        PluginError: no target, an unknown one, or a format that it has no matrix unit for.
        MissingExtraError: the target's library is not installed.
        EdgewamError: the stage cannot be exported, or the library cannot take it; names stage and node.
        GateError: the engine does not multiply in the planned formats.
    """
    target = find_target(options.target)
    for path, layer in quantized_layers(stage).items():
        target.require_format(layer.kind.name, f"Layer '{path}' of stage '{stage.name}'")
    target.require_here()
    with tempfile.TemporaryDirectory(dir=directory, prefix=f".{stage.name}.") as work:
        graph = export_onnx(stage, Path(work))
        version = tensorrt_api.load(target.family).version
        files = [path for path in Path(work).iterdir() if path.is_file()]
        key = engine_key(files, target.sm, target.library, version, str(SETTINGS_VERSION))
        same = taken_from(options.reuse, stage.name, key, Path(directory))  # it was read back when it was built
        return same or build_graph(graph, stage.name, target, Path(directory)) | {"key": key}


def runtime_of(record: Mapping[str, Any]) -> str:
    """The library that opens an engine, with its exact version, as `CudaMemory.device_facts` says it."""
    return f"{record['library']} {record['version']}"


def build_graph(graph: ExportedGraph, stage: str, target: Target, directory: Path) -> dict[str, Any]:
    """The second half of `build`, for graphs that are built for several targets; the engine is complete or not there."""
    file = f"{stage}.engine"
    made = graph.path.parent / file
    built = build_in_child(graph.path, made, target.family, target.sm, stage)
    found = read_back(built, graph)
    found.require(graph.products, stage, target.name)
    made.replace(directory / file)
    return {
        "file": file,
        "target": target.name,
        "sm": target.sm,
        **{key: built[key] for key in ("library", "version", "inputs", "outputs", "engine_bytes", "peak_memory_bytes")},
        "base": graph.base,
        "build_seconds": built["seconds"],
        "read_back": found.to_json(),
    }

"""A stage as the ONNX file that TensorRT parses: nodes named after layers, explicit Q/DQ, weights of any size beside the graph.

Opset 20 on purpose: TensorRT for RTX 1.7 fuses our plain attention (product, float32 softmax, product) from it in bf16 and fp16
just as well as from opset 23, and float32 graphs of opset 23 do not build at all once they hold an Attention node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgewam.compile.exporting import exporting, quiet
from edgewam.compile.onnx_export import to_onnx
from edgewam.compile.tensorrt_qdq import make_explicit
from edgewam.core.errors import require
from edgewam.core.stage import Stage
from edgewam.quantize.layers import as_float, quantized_layers

OPSET = 20
GRAPH = "stage.onnx"
WEIGHTS = "stage.onnx.data"  # beside the graph: a protobuf ends at 2 GB
_HALVES = (torch.bfloat16, torch.float16)
_PRODUCTS = ("Gemm", "MatMul", "Conv")


@dataclass(frozen=True)
class ExportedGraph:
    """What the read-back compares the engine with.

    base: float type of products that no plan changed.  products: name of every product with a weight -> its format, as planned;
    a product is named after its layer's path in the stage.  attentions: names of the softmax nodes between two products.
    """

    path: Path
    base: str
    products: Mapping[str, str]
    attentions: tuple[str, ...]


def base_dtype(stage: Stage) -> torch.dtype:
    """The half type that the stage's own floats have, float32 if it has none.

    Quantised layers do not count: they keep float32 numbers as their reference.
    """
    module = stage.function
    found: set[torch.dtype] = set()
    if isinstance(module, nn.Module):
        quantised = {id(t) for layer in quantized_layers(stage).values() for t in layer.state_dict(keep_vars=True).values()}
        tensors = (*module.parameters(), *module.buffers())
        found = {t.dtype for t in tensors if id(t) not in quantised}
    found |= {getattr(torch, spec.dtype) for spec in (*stage.inputs, *stage.outputs) if spec.dtype in ("bfloat16", "float16")}
    return next((dtype for dtype in _HALVES if dtype in found), torch.float32)


def export_onnx(stage: Stage, directory: Path) -> ExportedGraph:
    """Write the stage's graph and weights into `directory`.

    Raises:
        EdgewamError: the stage cannot be exported, or a quantised layer has no single product in the graph.
    """
    ir = require("onnx_ir", extra="onnx")
    base = base_dtype(stage)
    layers = quantized_layers(stage)
    with exporting(stage), quiet():
        model = to_onnx(as_float(stage, placeholders=True), OPSET).model
        _cast_bytes(ir, model.graph)
        base_name = str(base).removeprefix("torch.")
        products = _name_products(model.graph, base_name)
        make_explicit(model.graph, layers)
        products |= {path: layer.kind.name for path, layer in layers.items()}
        attentions = tuple(node.name for node in model.graph if node.op_type == "Softmax" and _feeds_product(node))
        _strip(model)
        ir.save(model, directory / GRAPH, external_data=WEIGHTS, size_threshold_bytes=1024)
    return ExportedGraph(directory / GRAPH, base_name, products, attentions)


def _cast_bytes(ir: Any, graph: Any) -> None:
    """Make every uint8 input float32 before anything else: TensorRT can only convert such tensors, not even turn them around.

    Bytes are exact in float32; a conversion that the stage makes itself comes after it and changes nothing.
    """
    for value in graph.inputs:
        if value.dtype != ir.DataType.UINT8:
            continue
        cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}.cast")
        cast.outputs[0].name = f"{value.name}.values"
        for reader, index in list(value.uses()):
            reader.replace_input_with(index, cast.outputs[0])
        cast.replace_input_with(0, value)
        graph.insert_before(graph[0], cast)


def _name_products(graph: Any, base: str) -> dict[str, str]:
    """Name each product with a weight after the layer it belongs to; several that share one are numbered."""
    products: dict[str, str] = {}
    for node in graph:
        if node.op_type not in _PRODUCTS:
            continue
        weight = node.inputs[1]
        if weight is None or weight.name not in graph.initializers or not weight.name.endswith(".weight"):
            continue
        name = path = weight.name.removesuffix(".weight")
        number = 1
        while name in products:
            number += 1
            name = f"{path}#{number}"
        node.name = name
        products[name] = _FLOATS.get(str(weight.dtype), base)
    return products


_FLOATS = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16"}


def _feeds_product(softmax: Any) -> bool:
    """Whether what a softmax gives is multiplied with values, through casts and reshapes."""
    value = softmax.outputs[0]
    while True:
        readers = [node for node, _ in value.uses()]
        if any(node.op_type in ("MatMul", "Gemm", "Einsum") for node in readers):
            return True
        if len(readers) != 1 or readers[0].op_type not in ("Cast", "Transpose", "Reshape", "Unsqueeze", "Squeeze"):
            return False
        value = readers[0].outputs[0]


def _strip(model: Any) -> None:
    """Remove stack traces of the build machine, and types of values in between: `_cast_bytes` changed some, parsers find them."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.type = value.shape = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()

"""Smaller ONNX files with exactly the same result: equal tensors stored once, float16-representable ones as float16.

A float32 tensor whose every value survives the trip through float16 is stored in half the bytes with a Cast behind it;
ONNX Runtime folds the Cast when it opens the file, so that nothing is converted while running.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgewam.core.errors import require

_MIN_VALUES = 64  # below this a Cast node costs more bytes than it saves


def compact(model: Any) -> Any:
    """Rewrite the initializers of an onnx.ModelProto in place and return it."""
    onnx = require("onnx", extra="onnx")
    _share_equal(model.graph)
    _store_half(onnx, model.graph)
    return model


def _key(tensor: Any) -> tuple[Any, ...]:
    return tensor.data_type, tuple(tensor.dims), _bytes(tensor)


def _bytes(tensor: Any) -> bytes:
    onnx = require("onnx", extra="onnx")
    array: np.ndarray = onnx.numpy_helper.to_array(tensor)
    return array.tobytes()


def _share_equal(graph: Any) -> None:
    """Keep one of several equal initializers and let every node read it.  Bit patterns are compared, not values."""
    int8 = require("onnx", extra="onnx").TensorProto.INT8
    kept: dict[tuple[Any, ...], str] = {}
    renamed: dict[str, str] = {}
    outputs = {value.name for value in graph.output}
    for tensor in list(graph.initializer):
        if tensor.data_type == int8:  # ONNX Runtime converts each quantised layer's own zero points and trips over shared ones
            continue
        first = kept.setdefault(_key(tensor), tensor.name)
        if first != tensor.name and tensor.name not in outputs:
            renamed[tensor.name] = first
            graph.initializer.remove(tensor)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)


def _store_half(onnx: Any, graph: Any) -> None:
    casts = []
    outputs = {value.name for value in graph.output}
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.name in outputs:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        # compared as bits so that -0.0 and NaN payloads count too
        if values.size < _MIN_VALUES or half.astype(np.float32).tobytes() != values.tobytes():
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.float16"))
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], f"{name}.cast", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]  # nodes must come before those that read them
    del graph.node[:]
    graph.node.extend(nodes)

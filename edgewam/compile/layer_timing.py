"""Time of single layers in ONNX Runtime, float32 against integer, at the shapes that a stage really runs them with.

A graph holds several copies of the layer, each with an input of its own, so that the engine's start is spread over them;
float32 and integer graphs are timed in turns.  What a layer costs between its neighbours can differ by a few microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from edgewam.compile.backends.onnxruntime import OPSET
from edgewam.compile.integer_onnx import make_integer
from edgewam.core.errors import require
from edgewam.quantize.layers import QuantizedConv2d, QuantizedLinear

_COPIES = 6  # of a linear layer; a convolution takes long enough alone
_BLOCKS, _CALLS = 10, 8
_QUANTILE = 10  # of all calls: a neighbour on the machine only ever adds time

Layer = nn.Linear | nn.Conv2d
Key = tuple[Any, ...]


def timing_key(layer: Layer, shape: Sequence[int]) -> Key:
    """Layers with equal keys take equally long; `smooth` counts, since it is a multiplication of its own."""
    strides = (layer.stride, layer.padding) if isinstance(layer, nn.Conv2d) else ()
    smooth = getattr(layer, "smooth", None) is not None
    return (*layer.weight.shape, *shape, *strides, getattr(getattr(layer, "kind", None), "name", ""), smooth)


def time_layers(variants: Mapping[str, Layer], shape: Sequence[int], threads: int) -> dict[str, float]:
    """Milliseconds of one call of each variant of one layer (as it is, and quantised) on inputs of `shape`."""
    runs = {name: _session(layer, shape, threads) for name, layer in variants.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_BLOCKS):
        for name, run in runs.items():
            run()
            for _ in range(_CALLS):
                start = time.perf_counter_ns()
                run()
                samples[name].append((time.perf_counter_ns() - start) / 1e6 / _copies(variants[name]))
    return {name: float(np.percentile(values, _QUANTILE)) for name, values in samples.items()}


def _copies(layer: Layer) -> int:
    return 1 if isinstance(layer, nn.Conv2d) else _COPIES


def _session(layer: Layer, shape: Sequence[int], threads: int) -> Any:
    from edgewam.runtime.backends.onnxruntime import session_options
    from edgewam.runtime.engine import EngineOptions

    onnx = require("onnx", extra="onnx")
    ort = require("onnxruntime", extra="onnx")
    model = _graph(onnx, layer, shape)
    options = session_options(EngineOptions(threads))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    inputs = {f"x{i}": rng.standard_normal(tuple(shape)).astype(np.float32) for i in range(_copies(layer))}
    return lambda: session.run(None, inputs)


def _graph(onnx: Any, layer: Layer, shape: Sequence[int]) -> Any:
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    nodes, constants, inputs, outputs = [], [], [], []
    integer: dict[str, QuantizedLinear | QuantizedConv2d] = {}
    for i in range(_copies(layer)):
        weight, bias = layer.weight.detach().numpy(), layer.bias
        constants.append(onnx.numpy_helper.from_array(weight, f"layer{i}.weight"))
        names = [f"x{i}", f"layer{i}.weight"]
        if bias is not None:
            constants.append(onnx.numpy_helper.from_array(bias.detach().numpy(), f"layer{i}.bias"))
            names.append(f"layer{i}.bias")
        if isinstance(layer, nn.Conv2d):
            assert not isinstance(layer.padding, str)
            strides = {"strides": list(layer.stride), "pads": [*layer.padding, *layer.padding]}
            nodes.append(helper.make_node("Conv", names, [f"y{i}"], f"layer{i}", **strides))
        else:
            nodes.append(helper.make_node("Gemm", names, [f"y{i}"], f"layer{i}", transB=1))
        inputs.append(helper.make_tensor_value_info(f"x{i}", float32, list(shape)))
        outputs.append(helper.make_tensor_value_info(f"y{i}", float32, None))
        if isinstance(layer, QuantizedLinear | QuantizedConv2d):
            integer[f"layer{i}"] = layer
    graph = helper.make_graph(nodes, "layers", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    make_integer(model, integer)
    return model

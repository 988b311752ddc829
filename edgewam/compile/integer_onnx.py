"""Integer kernels for quantised layers: rewrites the float32 nodes of an exported graph so that ONNX Runtime multiplies INT8.

What ONNX Runtime's CPU provider fuses, measured on its optimised graph (1.31, AVX-512 VNNI), and why these forms:

* `int8`, linear: Q/DQ in front of a Gemm whose weight and int32 bias are DQ of constants becomes one QGemm with float output.
  As MatMul + Add the pair is first merged into a float Gemm, and nothing is integer any more.
* `int8`, convolution: the same with Q/DQ behind it becomes a QLinearConv.
* `int8_dynamic`: DynamicQuantizeLinear, MatMulInteger, Cast, two Mul and Add become one DynamicQuantizeMatMul.
* `int8_weights`: DQ of the constant codes in front of the Gemm.  ONNX Runtime keeps it and makes float32 weights in every call:
  four times less memory, and slower than float32 (16 rows of a 128 x 512 layer: 35 against 22 us on two EPYC cores).
* Activations are uint8 with zero point 128, which is int8 with zero point 0: int8 convolutions ran at the speed of float32.
* MatMulNBits was slower than float32 at 16 to 120 rows, with float32 activations four to eight times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import EdgewamError, require
from edgewam.quantize.layers import QuantizedConv2d, QuantizedLinear

Array = npt.NDArray[Any]
FORMATS = ("int8", "int8_dynamic", "int8_weights")
INTEGER_KERNELS = ("QGemm", "QLinearConv", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul")
_MIDDLE = np.uint8(128)


def make_integer(model: Any, layers: Mapping[str, QuantizedLinear | QuantizedConv2d]) -> None:
    """Rewrite, in an onnx.ModelProto, the node that reads each layer's weight; its float32 weight disappears from the file.

    Args:
        model: exported from the stage with its layers replaced by float32 ones of the same names.
        layers: path of the layer in the stage's module -> the quantised layer.

    Raises:
        EdgewamError: the exporter made something else of a layer than one Gemm or Conv.
    """
    graph = model.graph
    for path, layer in layers.items():
        expected = "Conv" if isinstance(layer, QuantizedConv2d) else "Gemm"
        readers = [node for node in graph.node if f"{path}.weight" in node.input]
        if len(readers) != 1 or readers[0].op_type != expected or readers[0].input[1] != f"{path}.weight":
            found = ", ".join(node.op_type for node in readers) or "nothing"
            raise EdgewamError(
                f"The exporter turned the quantised layer '{path}' into {found} instead of one {expected}, so it cannot be made "
                "integer. Give that layer the format none in the plan."
            )
        _rewrite(graph, readers[0], path, layer)
    if not layers:
        return
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)


def integer_kernels(model: Any) -> dict[str, int]:
    """How many nodes of each integer kernel a graph has, as ONNX Runtime optimised it."""
    names = [node.op_type for node in model.graph.node]
    return {kernel: names.count(kernel) for kernel in INTEGER_KERNELS if kernel in names}


class _Nodes:
    """New nodes and constants of one layer, all named after it."""

    def __init__(self, path: str) -> None:
        self._onnx = require("onnx", extra="onnx")
        self.path = path
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: Array) -> str:
        full = f"{self.path}.{name}"
        self.constants.append(self._onnx.numpy_helper.from_array(np.asarray(value, order="C"), full))  # a scalar stays one
        return full

    def node(self, kind: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        names = [f"{self.path}.{name}" for name in outputs]
        self.nodes.append(self._onnx.helper.make_node(kind, inputs, names, f"{names[0]}.{kind}", **attributes))
        return names[0]


def _rewrite(graph: Any, node: Any, path: str, layer: QuantizedLinear | QuantizedConv2d) -> None:
    new = _Nodes(path)
    x = node.input[0]
    if layer.smooth is not None:
        x = new.node("Mul", [x, new.constant("smooth", layer.smooth.numpy())], "smoothed")
    if layer.kind.name == "int8_dynamic":
        assert isinstance(layer, QuantizedLinear)
        last = _dynamic(new, x, layer)
    elif layer.kind.name == "int8_weights":
        last = _weights_only(new, x, layer, node)
    else:
        last = _static(new, x, layer, node)
    new.nodes[-1].output[0] = node.output[0]
    assert last, "the last node carries the layer's result"
    position = list(graph.node).index(node)
    nodes = [*graph.node[:position], *new.nodes, *graph.node[position + 1 :]]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(new.constants)


def _static(new: _Nodes, x: str, layer: QuantizedLinear | QuantizedConv2d, node: Any) -> str:
    assert layer.input_scale is not None
    weight_scale, input_scale = layer.weight_scale.numpy(), layer.input_scale.numpy()
    inputs = [_round(new, x, "input", input_scale), _weight(new, layer)]
    if layer.bias is not None:
        bias_scale = (weight_scale * input_scale).astype(np.float32)
        bias = np.round(layer.bias.detach().numpy().astype(np.float64) / bias_scale).astype(np.int32)
        parts = [new.constant("bias_codes", bias), new.constant("bias_scale", bias_scale)]
        inputs.append(new.node("DequantizeLinear", parts, "bias_values", axis=0))
    product = new.node(node.op_type, inputs, "product", **_attributes(new, node))
    if isinstance(layer, QuantizedConv2d):
        assert layer.output_scale is not None
        return _round(new, product, "output", layer.output_scale.numpy())
    return product


def _weights_only(new: _Nodes, x: str, layer: QuantizedLinear | QuantizedConv2d, node: Any) -> str:
    inputs = [x, _weight(new, layer)]
    if layer.bias is not None:
        inputs.append(new.constant("bias_floats", layer.bias.detach().numpy()))
    return new.node(node.op_type, inputs, "product", **_attributes(new, node))


def _weight(new: _Nodes, layer: QuantizedLinear | QuantizedConv2d) -> str:
    scale = layer.weight_scale.numpy()
    zeros = np.zeros(len(scale), np.int8)  # they are the default, but without them the Gemm stays a float one
    parts = [new.constant("codes", layer.codes.numpy()), new.constant("weight_scale", scale)]
    return new.node("DequantizeLinear", [*parts, new.constant("weight_zero", zeros)], "weight_values", axis=0)


def _attributes(new: _Nodes, node: Any) -> dict[str, Any]:
    return {a.name: new._onnx.helper.get_attribute_value(a) for a in node.attribute}


def _round(new: _Nodes, x: str, name: str, scale: Array) -> str:
    parts = [new.constant(f"{name}_scale", scale.astype(np.float32)), new.constant(f"{name}_zero", np.asarray(_MIDDLE))]
    codes = new.node("QuantizeLinear", [x, *parts], f"{name}_codes")
    return new.node("DequantizeLinear", [codes, *parts], f"{name}_values")


def _dynamic(new: _Nodes, x: str, layer: QuantizedLinear) -> str:
    codes = new.node("DynamicQuantizeLinear", [x], "input_codes", "input_scale", "input_zero")
    weight = new.constant("codes", layer.codes.numpy().T)
    product = new.node("MatMulInteger", [codes, weight, f"{new.path}.input_zero"], "integers")
    floats = new.node("Cast", [product], "floats", to=1)
    scale = new.node("Mul", [f"{new.path}.input_scale", new.constant("weight_scale", layer.weight_scale.numpy())], "scale")
    result = new.node("Mul", [floats, scale], "product")
    if layer.bias is not None:
        result = new.node("Add", [result, new.constant("bias_floats", layer.bias.detach().numpy())], "sum")
    return result

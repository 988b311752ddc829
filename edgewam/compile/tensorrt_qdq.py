"""Explicit quantisation for TensorRT: around the product of every quantised layer, in an exported graph, the Q/DQ it needs.

The weight is stored as one-byte codes with a scale per output channel, what comes in is rounded with one static scale, and
everything around the product is float32, as it is in the layer itself (`quantize/arithmetic.py`): TensorRT then multiplies FP8
or INT8 and gives float32 sums, so that scales are exact and no sum of codes overflows a half type.  It launches as many kernels
as with scales in the half type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from edgewam.core.errors import EdgewamError, require
from edgewam.quantize.layers import QuantizedConv2d, QuantizedLinear

FORMATS = ("int8", "fp8")
_TYPES = {torch.int8: "INT8", torch.float8_e4m3fn: "FLOAT8E4M3FN"}

Layer = QuantizedLinear | QuantizedConv2d


def make_explicit(graph: Any, layers: Mapping[str, Layer]) -> None:
    """Rewrite an onnx_ir graph in place.

    Args:
        graph: exported from the stage with each quantised layer as a plain one of the same name.
        layers: path of the layer in the stage's module -> the quantised layer.

    Raises:
        EdgewamError: the exporter made something else of a layer than one Gemm or Conv.
    """
    for path, layer in layers.items():
        expected = "Conv" if isinstance(layer, QuantizedConv2d) else "Gemm"
        weight = graph.initializers.get(f"{path}.weight")
        readers = [] if weight is None else [node for node, index in weight.uses() if index == 1]
        if len(readers) != 1 or readers[0].op_type != expected:
            found = ", ".join(node.op_type for node in readers) or "nothing"
            raise EdgewamError(
                f"The exporter turned the quantised layer '{path}' into {found} instead of one {expected}, so it cannot be "
                f"multiplied in {layer.kind.name}. Give that layer the format none in the plan."
            )
        _Rewrite(graph, readers[0], path, layer).apply()


class _Rewrite:
    """New nodes and constants around one product, all named after its layer."""

    def __init__(self, graph: Any, product: Any, path: str, layer: Layer) -> None:
        self.ir = require("onnx_ir", extra="onnx")
        self.graph, self.product, self.path, self.layer = graph, product, path, layer
        self.code_type = self.ir.DataType[_TYPES[layer.kind.dtype]]
        self.new: list[Any] = []

    def apply(self) -> None:
        """Put the product between Q/DQ; what it reads and gives is float32, since quantised layers are islands of it."""
        layer, out, floats = self.layer, self.product.outputs[0], self.ir.DataType.FLOAT
        x, weight, *bias = self.product.inputs
        assert (x.dtype, out.dtype) == (floats, floats), f"'{self.path}' multiplies {x.dtype} to {out.dtype}"
        if layer.smooth is not None:
            x = self.node("Mul", [x, self.constant("smooth", layer.smooth)], "smoothed")
        if layer.kind.rounds_inputs:
            x = self.rounded(x, "input", layer.input_scale)
        self.product.replace_input_with(0, x)
        self.product.replace_input_with(1, self.weight())
        del self.graph.initializers[weight.name]
        if bias and bias[0] is not None:
            self.product.replace_input_with(2, self.constant("bias_values", layer.bias.detach()))
        self.graph.insert_before(self.product, self.new)
        self.new = []
        readers, is_output = list(out.uses()), out.is_graph_output()
        last = out if layer.output_scale is None else self.rounded(out, "output", layer.output_scale)
        for reader, index in readers:
            reader.replace_input_with(index, last)
        if is_output:
            self.graph.outputs[list(self.graph.outputs).index(out)] = last
            last.name, out.name = out.name, f"{self.path}.product"
        self.graph.insert_after(self.product, self.new)

    def weight(self) -> Any:
        """Codes and their scales, dequantised; the codes are made when the file is written, one layer at a time."""
        layer, ir, name = self.layer, self.ir, f"{self.path}.codes"
        shape = ir.Shape(layer.weight.shape)

        def make() -> Any:
            codes = layer.codes.contiguous()
            array = codes.numpy() if codes.dtype == torch.int8 else codes.view(torch.uint8).numpy().view(self.code_type.numpy())
            return ir.Tensor(array, dtype=self.code_type, name=name)

        value = self.value(name, ir.LazyTensor(make, dtype=self.code_type, shape=shape, name=name))
        return self.node("DequantizeLinear", [value, self.constant("weight_scale", layer.weight_scale)], "weight_values", axis=0)

    def rounded(self, x: Any, name: str, scale: Any) -> Any:
        """`x` after a round trip through codes with one static scale."""
        parts = [
            self.constant(f"{name}_scale", scale.reshape(())),
            self.constant(f"{name}_zero", torch.zeros(()), self.code_type),
        ]
        codes = self.node("QuantizeLinear", [x, *parts], f"{name}_codes", dtype=self.code_type)
        return self.node("DequantizeLinear", [codes, *parts], f"{name}_values")

    def constant(self, name: str, value: torch.Tensor, dtype: Any = None) -> Any:
        """A float32 constant, or one of another type."""
        dtype = dtype or self.ir.DataType.FLOAT
        array = np.asarray(value.float().numpy().astype(dtype.numpy()))
        return self.value(f"{self.path}.{name}", self.ir.Tensor(array, dtype=dtype, name=f"{self.path}.{name}"))

    def value(self, name: str, tensor: Any) -> Any:
        made = self.ir.Value(name=name, shape=tensor.shape, type=self.ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.initializers[name] = made
        return made

    def node(self, kind: str, inputs: list[Any], output: str, dtype: Any = None, **attributes: Any) -> Any:
        made = self.ir.node(kind, inputs, attributes, name=f"{self.path}.{output}")
        made.outputs[0].name, made.outputs[0].dtype = f"{self.path}.{output}", dtype or self.ir.DataType.FLOAT
        self.new.append(made)
        return made.outputs[0]

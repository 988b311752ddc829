"""The graph that TensorRT is given: one-byte weights, the reference's numbers, names that can be found again, no traces."""

import numpy as np
import pytest
import torch
from torch import nn

from edgewam.compile.exporting import quiet
from edgewam.compile.onnx_export import to_onnx
from edgewam.compile.samples import random_inputs
from edgewam.compile.tensorrt_onnx import OPSET, base_dtype, export_onnx
from edgewam.compile.tensorrt_qdq import make_explicit
from edgewam.core.errors import EdgewamError
from edgewam.core.stage import Cost, Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.quantize.layers import Scales, find_layers, quantized, with_layers
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.engine import run_engine
from tests.quantize.toy import toy_stages

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")
ort = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

ATOL = 2e-5  # float32 sums of 96 terms in another order; values of order one, and both sides round the same numbers to codes


def quantised(kind, smooth=False):
    stages = toy_stages()
    made = {}
    for name, layer in find_layers(stages).items():
        if isinstance(layer, nn.Conv2d):
            if kind == "int8":
                made[name] = quantized(layer, Scales(kind, torch.tensor(0.03), torch.tensor(0.03)))
            continue
        factors = torch.linspace(0.5, 2.0, layer.in_features) if smooth else None
        made[name] = quantized(layer, Scales(kind, torch.tensor(0.02), smooth=factors))
    return with_layers(stages, made)["net"]


@pytest.mark.parametrize(("kind", "smooth"), [("int8", False), ("int8", True), ("fp8", False), ("fp8", True)])
def test_the_graph_computes_what_the_quantised_layers_compute(kind, smooth, tmp_path):
    stage = quantised(kind, smooth)
    graph = export_onnx(stage, tmp_path)
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(graph.path), settings)
    inputs = random_inputs(stage.inputs, seed=3)
    expected = run_engine(stage, TorchEngine(stage), inputs)
    for spec, found in zip(stage.outputs, session.run(None, inputs), strict=True):
        np.testing.assert_allclose(found, expected[spec.name], atol=ATOL, rtol=0, err_msg=spec.name)


@pytest.mark.parametrize(("kind", "code"), [("int8", "INT8"), ("fp8", "FLOAT8E4M3FN")])
def test_weights_are_one_byte_with_a_scale_per_output_channel(kind, code, tmp_path):
    model = onnx.load(export_onnx(quantised(kind), tmp_path).path)
    tensors = {t.name: t for t in model.graph.initializer}
    assert tensors["up.codes"].data_type == onnx.TensorProto.DataType.Value(code) and list(tensors["up.codes"].dims) == [96, 64]
    assert list(tensors["up.weight_scale"].dims) == [96] and not list(tensors["up.input_scale"].dims)
    (node,) = [n for n in model.graph.node if n.name == "up.weight_values"]
    assert [a.i for a in node.attribute if a.name == "axis"] == [0]
    assert not any(name.endswith(".weight") for name in tensors if name.startswith(("up", "down")))


def test_products_are_named_after_their_layers_and_traces_are_gone(tmp_path):
    graph = export_onnx(toy_stages()["net"], tmp_path)
    assert graph.products == {"up": "float32", "down": "float32", "conv": "float32"} and graph.base == "float32"
    model = onnx.load(graph.path)
    assert {n.name: n.op_type for n in model.graph.node if n.name in graph.products} == {
        "up": "Gemm",
        "down": "Gemm",
        "conv": "Conv",
    }
    text = str(onnx.load(graph.path, load_external_data=False))
    assert "stack_trace" not in text and "/edgewam/" not in text and "metadata_props" not in text


def test_large_weights_lie_beside_the_graph(tmp_path):
    graph = export_onnx(toy_stages()["net"], tmp_path)
    large = [t for t in onnx.load(graph.path, load_external_data=False).graph.initializer if np.prod(t.dims) > 256]
    assert large and all(t.data_location == onnx.TensorProto.EXTERNAL for t in large)
    onnx.checker.check_model(str(graph.path))


class Turned(nn.Module):
    """Looks at bytes the other way round before it makes numbers of them."""

    def forward(self, image):
        """image uint8 [4, 6, 3] -> [3, 4, 6]."""
        return (image.permute(2, 0, 1).float() / 255,)


def test_bytes_become_numbers_before_anything_else(tmp_path):
    stage = Stage("turned", (TensorSpec("image", (4, 6, 3), "uint8"),), (TensorSpec("y", (3, 4, 6)),), Cost(0, 0, 1, 1), Turned())
    graph = export_onnx(stage, tmp_path)
    nodes = onnx.load(graph.path).graph.node
    assert nodes[0].op_type == "Cast" and [n.op_type for n in nodes if "image" in n.input] == ["Cast"]
    image = random_inputs(stage.inputs, seed=1)
    (found,) = ort.InferenceSession(str(graph.path)).run(None, image)
    np.testing.assert_array_equal(found, run_engine(stage, TorchEngine(stage), image)["y"])


def test_quantised_layers_do_not_decide_the_base_type():
    assert base_dtype(quantised("fp8")) == torch.float32
    stages = toy_stages()
    stages["net"].function.to(torch.bfloat16)
    layers = {n: quantized(layer, Scales("fp8", torch.tensor(0.1))) for n, layer in find_layers(stages).items() if n[1] == "up"}
    assert base_dtype(with_layers(stages, layers)["net"]) == torch.bfloat16


class Half(nn.Module):
    """A bfloat16 layer between float32 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8, dtype=torch.bfloat16).requires_grad_(False)

    def forward(self, x):
        """x [4, 8] -> [4, 8]."""
        return (torch.tanh(self.mix(torch.tanh(x.bfloat16()))).float(),)


def half_stage():
    return {"half": Stage("half", (TensorSpec("x", (4, 8)),), (TensorSpec("y", (4, 8)),), Cost(0, 0, 1, 1), Half())}


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_quantised_layer_of_a_half_stage_multiplies_in_float32_between_its_own_casts(kind, tmp_path):
    layers = {name: quantized(layer, Scales(kind, torch.tensor(0.1))) for name, layer in find_layers(half_stage()).items()}
    nodes = onnx.load(export_onnx(with_layers(half_stage(), layers)["half"], tmp_path).path).graph.node
    made = {name: node for node in nodes for name in node.output}
    (product,) = [node for node in nodes if node.op_type == "Gemm"]
    (rounding,) = [node for node in nodes if node.op_type == "QuantizeLinear"]
    (after,) = [node for node in nodes if product.output[0] in node.input]
    casts = [(node.op_type, node.attribute[0].i) for node in (made[rounding.input[0]], after)]
    assert casts == [("Cast", onnx.TensorProto.FLOAT), ("Cast", onnx.TensorProto.BFLOAT16)]


def test_a_product_that_is_not_float32_is_never_made_explicit():
    ((_, layer),) = find_layers(half_stage()).items()
    with quiet():
        graph = to_onnx(half_stage()["half"], OPSET).model.graph
    with pytest.raises(AssertionError, match="'mix' multiplies BFLOAT16 to BFLOAT16"):
        make_explicit(graph, {"mix": quantized(layer, Scales("fp8", torch.tensor(0.1)))})


class Twice(nn.Module):
    """One layer, used two times."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x):
        """x [4, 8] -> [4, 8]."""
        return (self.mix(torch.tanh(self.mix(x))),)


def test_a_quantised_layer_without_one_product_is_named(tmp_path):
    spec = TensorSpec("x", (4, 8))
    stages = {"twice": Stage("twice", (spec,), (TensorSpec("y", (4, 8)),), Cost(0, 0, 1, 1), Twice())}
    assert set(export_onnx(stages["twice"], tmp_path).products) == {"mix", "mix#2"}
    layers = {name: quantized(layer, Scales("int8", torch.tensor(0.1))) for name, layer in find_layers(stages).items()}
    with pytest.raises(EdgewamError, match="'mix' into Gemm, Gemm instead of one Gemm"):
        export_onnx(with_layers(stages, layers)["twice"], tmp_path)

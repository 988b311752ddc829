"""ONNX Runtime multiplies integers for quantised layers: counted in its optimised graph, compared with the eager layers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgewam.cli._shipped import SMALL
from edgewam.compile.integer_onnx import integer_kernels, make_integer
from edgewam.compile.layer_timing import time_layers, timing_key
from edgewam.compile.tolerances import QUANTIZED
from edgewam.core.errors import EdgewamError
from edgewam.quantize.layers import Scales, find_layers, quantized, with_layers
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.deviation import deviation
from edgewam.runtime.engine import EngineOptions, run_engine
from tests.quantize.toy import toy_recording, toy_stages

onnx = pytest.importorskip("onnx", reason="needs edgewam[onnx]")
ort = pytest.importorskip("onnxruntime", reason="needs edgewam[onnx]")

from edgewam.compile.backends import onnxruntime as build  # noqa: E402
from edgewam.runtime.backends import onnxruntime as run  # noqa: E402

SAME_SUM = 1e-4  # float32 sums of 64 to 96 products of size 20 in another order


def optimised(path: Path):
    """The graph as ONNX Runtime will run it."""
    options = run.session_options(EngineOptions(threads=1))
    options.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath)


def toy(up="int8", down="int8_dynamic", conv="int8"):
    """The toy stage quantised, and its inputs by name."""
    stages = toy_stages()
    layers = find_layers(stages)
    image, rows = toy_recording(1).calls["net"][0]
    scales = {
        ("net", "conv"): Scales("int8", image.abs().max() / 127, layers["net", "conv"](image).abs().max() / 127),
        ("net", "up"): Scales(up, rows.abs().max() / 127, smooth=torch.linspace(0.6, 1.5, 64)),
        ("net", "down"): Scales(down) if down == "int8_dynamic" else Scales(down, torch.tensor(1.0 / 127)),
    }
    if conv == "none":
        del scales["net", "conv"]
    stage = with_layers(stages, {name: quantized(layers[name], s) for name, s in scales.items()})["net"]
    return stages["net"], stage, {"image": image.numpy(), "rows": rows.numpy()}


def test_every_quantised_layer_is_one_integer_kernel(tmp_path):
    _, stage, _ = toy()
    build.build(stage, tmp_path)
    graph = optimised(tmp_path / "net.onnx")
    assert integer_kernels(graph) == {"QGemm": 1, "QLinearConv": 1, "DynamicQuantizeMatMul": 1}
    floats = [node.op_type for node in graph.graph.node if node.op_type in ("Gemm", "MatMul", "Conv", "FusedConv", "FusedGemm")]
    assert not floats


def test_weights_that_are_only_stored_as_integers_would_be_noticed(tmp_path):
    """The count of the test above is no formality: DQ in front of a float Gemm is what a small slip leaves behind."""
    _, stage, _ = toy()
    build.build(stage, tmp_path)
    model = onnx.load(tmp_path / "net.onnx")
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    source = {node.output[0]: node for node in model.graph.node}
    gemm.input[0] = source[source[gemm.input[0]].input[0]].input[0]  # activations without Q/DQ
    onnx.save(model, tmp_path / "slip.onnx")
    assert "QGemm" not in integer_kernels(optimised(tmp_path / "slip.onnx"))


def test_the_engine_computes_what_the_eager_layers_compute(tmp_path):
    plain, stage, inputs = toy()
    record = build.build(stage, tmp_path)
    engine = run.load(stage.without_function(), tmp_path, record, EngineOptions(threads=1))
    found, expected = run_engine(stage, engine, inputs), run_engine(stage, TorchEngine(stage), inputs)
    unquantised = run_engine(plain, TorchEngine(plain), inputs)
    for name in expected:
        assert deviation(found[name], expected[name]).within(QUANTIZED.stage)
        # closer to the quantised reference than that is to float32: the engine rounds what the layers round
        gap = np.abs(expected[name] - unquantised[name]).mean()
        assert np.abs(found[name] - expected[name]).mean() < 0.2 * gap


@pytest.mark.parametrize("name", ["up", "down"])  # with and without bias
def test_weight_only_layers_keep_int8_weights_in_the_engine_and_float32_products(name, tmp_path):
    stages, (image, rows) = toy_stages(), toy_recording(1).calls["net"][0]
    layer = find_layers(stages)["net", name]
    stage = with_layers(stages, {("net", name): quantized(layer, Scales("int8_weights"))})["net"]
    record = build.build(stage, tmp_path)
    graph = optimised(tmp_path / "net.onnx").graph
    assert not integer_kernels(optimised(tmp_path / "net.onnx"))
    kept = {t.name: t for t in graph.initializer}[f"{name}.codes"]
    assert kept.data_type == onnx.TensorProto.INT8, "ONNX Runtime made float32 weights of it when it opened the file"
    inputs = {"image": image.numpy(), "rows": rows.numpy()}
    engine = run.load(stage.without_function(), tmp_path, record, EngineOptions(threads=1))
    found, expected = run_engine(stage, engine, inputs), run_engine(stage, TorchEngine(stage), inputs)
    assert np.allclose(found["out"], expected["out"], atol=SAME_SUM)


def test_a_wrong_scale_is_beyond_the_tolerance(tmp_path):
    _, stage, inputs = toy()
    build.build(stage, tmp_path)
    model = onnx.load(tmp_path / "net.onnx")
    scale = next(t for t in model.graph.initializer if t.name == "up.weight_scale")
    values = onnx.numpy_helper.to_array(scale) * 1.5
    scale.CopyFrom(onnx.numpy_helper.from_array(values, scale.name))
    onnx.save(model, tmp_path / "net.onnx")
    engine = run.load(stage.without_function(), tmp_path, {"file": "net.onnx"}, EngineOptions(threads=1))
    found, expected = run_engine(stage, engine, inputs), run_engine(stage, TorchEngine(stage), inputs)
    assert not deviation(found["out"], expected["out"]).within(QUANTIZED.stage)


@pytest.mark.parametrize("kind", ["fp8"])
def test_a_format_without_kernels_is_refused_with_a_way_out(kind):
    _, stage, _ = toy(down=kind)
    support = build.supports(stage)
    assert not support.ok and "float32" in support.reason and "--plan int8" in support.reason


def test_a_layer_that_the_exporter_changes_is_named():
    layer = quantized(find_layers(toy_stages())["net", "up"], Scales("int8_dynamic"))
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    with pytest.raises(EdgewamError, match="layer 'up' into nothing instead of one Gemm"):
        make_integer(model, {"up": layer})


@pytest.fixture(scope="module")
def router():
    """A real stage of the shipped policy; scales are made up, since kernels do not depend on them."""
    from edgewam.recipes.deploy import compile_plan

    torch.set_num_threads(1)
    stages = {"router": compile_plan(SMALL / "student", "eager", threads=1).stages["router"]}
    layers = find_layers(stages)
    made = {
        name: quantized(layer, Scales("int8", torch.tensor(0.05)) if index % 2 else Scales("int8_dynamic"))
        for index, (name, layer) in enumerate(layers.items())
    }
    return stages["router"], with_layers(stages, made)["router"], len(layers)


def test_all_products_of_a_real_stage_are_integer_and_its_file_shrinks(router, tmp_path):
    plain, stage, count = router
    build.build(stage, tmp_path)
    kernels = integer_kernels(optimised(tmp_path / "router.onnx"))
    assert sum(kernels.values()) == count and set(kernels) == {"QGemm", "DynamicQuantizeMatMul"}
    weights = sum(layer.weight.numel() for layer in find_layers({"router": plain}).values())
    size = (tmp_path / "router.onnx").stat().st_size
    rest = plain.cost.weight_bytes - 4 * weights  # queries, norms, biases
    assert 4 * weights / (size - rest) > 3.5


def test_time_is_measured_for_each_variant_of_a_layer():
    layer = find_layers(toy_stages())["net", "up"]
    made = quantized(layer, Scales("int8_dynamic"))
    times = time_layers({"float32": layer, "int8_dynamic": made}, (16, 64), threads=1)
    assert set(times) == {"float32", "int8_dynamic"} and all(0 < ms < 50 for ms in times.values())
    assert timing_key(layer, (16, 64)) != timing_key(made, (16, 64))
    assert timing_key(made, (16, 64)) == timing_key(quantized(layer, Scales("int8_dynamic")), (16, 64))

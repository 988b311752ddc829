"""Scales per step in TensorRT: one exported graph computes every row as the reference does, and its products are eight bits."""

import numpy as np
import pytest
import torch

from edgewam.compile.build_options import BuildOptions
from edgewam.core import plugins
from edgewam.quantize.layers import with_layers
from edgewam.quantize.steps import with_scale_rows
from tests.quantize.test_steps import GAIN, SCALES, STEPS, X, call, layers_with, stage_and_programs

# Float32 products of the same codes, summed in another order; nothing lies on the border of a code in these inputs.
CLOSE = 1e-5


def stepped(kind, dtype=torch.float32):
    stages, _ = stage_and_programs(dtype)
    return with_scale_rows(with_layers(stages, layers_with(stages, kind, SCALES)))["net"]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_graph_for_tensorrt_computes_every_row_as_the_reference(kind, tmp_path):
    ort = pytest.importorskip("onnxruntime", reason="needs edgewam[onnx]")
    pytest.importorskip("onnxscript", reason="needs edgewam[onnx]")
    from edgewam.compile.tensorrt_onnx import export_onnx

    stage = stepped(kind)
    graph = export_onnx(stage, tmp_path)
    assert set(graph.products.items()) == {("up", kind), ("down", kind)}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # the graph itself is judged
    session = ort.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"])
    for step in range(STEPS):
        row = torch.tensor([values[step] for values in SCALES.values()])
        found = session.run(None, {"x": X.numpy(), "gain": GAIN.numpy(), "scale_row": row.numpy()})[0]
        expected = call(stage, X, GAIN, row).numpy()
        assert np.abs(found - expected).max() < CLOSE * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_every_planned_product_of_the_engine_is_eight_bits(kind, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs edgewam[rtx]")
    backend = plugins.load("backend_build", "tensorrt")
    stage = stepped(kind, torch.bfloat16)
    assert backend.supports(stage).ok
    record = backend.build(stage, tmp_path, BuildOptions("rtx-5090"))
    assert record["read_back"]["formats"] == {kind: 2}
    assert [spec["name"] for spec in record["inputs"]] == ["x", "gain", "scale_row"]

"""Rows of an engine's layers, from both sources.

The log lines are those of TensorRT for RTX 1.7.1.116, shortened; the inspector's JSON was written by hand after the layers
that NVIDIA/TensorRT issue 4397 shows, since full TensorRT was never run here.
"""

import json

import pytest

from edgewam.compile.tensorrt_layers import from_inspector, from_log, memory_bytes
from edgewam.compile.tensorrt_onnx import ExportedGraph
from edgewam.compile.tensorrt_readback import read_back
from edgewam.core.errors import GateError

GEMM = (
    "Name: ffn.0.up_myl0_9, LayerType: gemm, Inputs: [ { Name: a, Dimensions: [16,128], Strides: [128,1], StrideOrder: [1,0], "
    "Datatype: FP8, Format: (Linear) Row major linear format }], "
    "Constants: [ { Name: w, Dimensions: [128,512], Strides: [1,128], StrideOrder: [0,1], "
    "Datatype: FP8, Format: (Transposed) Transposed format }, { Name: alpha, Dimensions: [1], Strides: [1], "
    "StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: b, Dimensions: [16,512], "
    "Strides: [512,1], StrideOrder: [1,0], Datatype: Float, Format: (Linear) Row major linear format }], "
    "TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: ffn.0.up][ONNX Layer: ffn.0.up.weight_values]"
)
ATTENTION = (
    "Name: _gemm_mha_v2_myl0_8, LayerType: kgen, Inputs: [ { Name: q, Dimensions: [4,16,48], Datatype: BFloat16, Format: x }], "
    "Constants: [], Outputs: [ { Name: o, Dimensions: [4,16,48], Datatype: BFloat16, Format: x }], "
    "TacticName: _gemm_mha_v2_0x77, StreamId: 0, Metadata: [ONNX Layer: node_matmul_2][ONNX Layer: node_softmax]"
)
SIGNAL = "Name: s_myl0_0, LayerType: signal, Inputs: [], Outputs: [], TacticName: , StreamId: 0, EventId: 31, Metadata: "
LOG = ["other", "\n".join(["Layers:", GEMM, ATTENTION, SIGNAL, "", "I/O Tensors:", " Name: x, IOMode: Input"])]
LOG += ["Total Weights Memory: 1199880 bytes", "Total Activation Memory: 8560640 bytes"]


def tensor(datatype, key="Format/Datatype"):
    return {"Name": "t", "Dimensions": [16, 128], key: datatype}


def inspector_json(gemm="FP8"):
    layers = [
        {"Name": "ffn.0.up_myl0_9", "LayerType": "gemm", "Inputs": [tensor(gemm)], "Outputs": [tensor("Half")],
         "TacticName": "sm89_xmma", "StreamId": 0, "Metadata": "[ONNX Layer: ffn.0.up]\x1e[ONNX Layer: ffn.0.up.weight_values]"},
        {"Name": "_gemm_mha_v2_myl0_8", "LayerType": "kgen", "Inputs": [tensor("BFloat16", "Datatype")],
         "Outputs": [tensor("Row major linear BF16 format (kLINEAR)")], "Metadata": "[ONNX Layer: node_softmax]"},
        {"Name": "s", "LayerType": "signal", "Inputs": [], "Outputs": [], "Metadata": ""},
    ]  # fmt: skip
    return json.dumps({"Layers": layers, "Bindings": ["x"]})


GRAPH = ExportedGraph(None, "bfloat16", {"ffn.0.up": "fp8"}, ("node_softmax",))
SOURCES = {
    "log": lambda: {"layers": from_log(LOG), **memory_bytes(LOG)},
    "inspector": lambda: {"layers": from_inspector(inspector_json()), "weight_bytes": 1199880, "activation_bytes": 8560640},
}


@pytest.mark.parametrize("source", SOURCES)
def test_both_sources_give_the_same_result(source):
    found = read_back(SOURCES[source](), GRAPH)
    assert found.products == {"ffn.0.up": "fp8"} and found.gemms == {"fp8": 1}
    assert found.kernels == 2 and found.attentions == 1 and found.unfused == ()
    assert (found.weight_bytes, found.activation_bytes) == (1199880, 8560640)
    found.require(GRAPH.products, "denoise", "rtx-5090")


def test_a_log_row_keeps_types_and_nodes():
    gemm, _, signal = from_log(LOG)
    assert gemm["inputs"] == ["FP8"] and gemm["constants"] == ["FP8", "Float"] and gemm["outputs"] == ["Float"]
    assert gemm["nodes"] == ["ffn.0.up", "ffn.0.up.weight_values"] and signal["nodes"] == []


def test_an_engine_of_full_tensorrt_that_undid_the_plan_is_refused():
    found = read_back({"layers": from_inspector(inspector_json("Half")), "weight_bytes": 1, "activation_bytes": 1}, GRAPH)
    with pytest.raises(GateError, match=r"'ffn.0.up' of stage 'denoise' is multiplied in float16 on target 'thor'.*says fp8"):
        found.require(GRAPH.products, "denoise", "thor")


def test_codes_times_floats_is_not_the_planned_product():
    mixed = [
        line.replace("[128,512], Strides: [1,128], StrideOrder: [0,1], Datatype: FP8", "[1], Datatype: Half") for line in LOG
    ]
    found = read_back({"layers": from_log(mixed), **memory_bytes(LOG)}, GRAPH)
    with pytest.raises(GateError, match="cannot be seen"):
        found.require(GRAPH.products, "denoise", "rtx-5090")


def test_an_attention_in_parts_is_named():
    apart = [line.replace("_gemm_mha_v2_myl0_8", "__myl_MaxrSubExpSumDivMul_myl0_8") for line in LOG]
    assert read_back({"layers": from_log(apart), **memory_bytes(LOG)}, GRAPH).unfused == ("node_softmax",)


@pytest.mark.parametrize(
    ("inputs", "constants", "found"),
    [
        (["BFloat16"], ["Float", "BFloat16"], "bfloat16"),
        (["Float", "Float"], ["BFloat16"], "bfloat16"),
        (["Half", "Half"], ["Float"], "float16"),
        (["Float"], ["Float"], "float32"),
        (["Int8", "Int8"], ["Float"], "int8"),
        (["Half"], ["Int8", "Half"], "unknown"),
    ],
)
def test_the_types_of_both_sides_decide_and_not_those_of_scalars_beside_them(inputs, constants, found):
    row = {"name": "up_myl0_1", "kind": "gemm", "inputs": inputs, "constants": constants, "outputs": [], "nodes": ["up"]}
    graph = ExportedGraph(None, "bfloat16", {"up": "bfloat16"}, ())
    assert read_back({"layers": [row], "weight_bytes": 1, "activation_bytes": 1}, graph).products == {"up": found}

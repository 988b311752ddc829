"""Real TensorRT for RTX engines, built without a GPU: what is in them, and what is refused.

A structural check of what the library builds for sm_120 and sm_89; nothing here runs an engine.
"""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgewam.compile.backends import tensorrt
from edgewam.compile.build_options import BuildOptions
from edgewam.compile.tensorrt_engine import build_in_child
from edgewam.compile.tensorrt_onnx import export_onnx
from edgewam.compile.tensorrt_readback import read_back
from edgewam.core.errors import EdgewamError, GateError
from edgewam.core.observation import Normalizer
from edgewam.core.stage import Cost, Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.models import aha_wam
from edgewam.models.wam_stages import DenoiseStage
from edgewam.models.wan_vae import WanVae, WanVaeConfig
from edgewam.models.wan_vae_image import image_encoder
from edgewam.quantize.layers import Scales, find_layers, quantized, with_layers
from tests.models import aha_wam_golden as golden

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")
pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")

KEPT = ("encoder", "head")  # action numbers in and out stay in the base type, as in every plan
MAX_KERNELS_PER_BLOCK = 20  # 19.5 were seen, both ends of the stage included; a product or an attention in parts adds one or more


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def denoise(model, dtype):
    """The stage `denoise` of a model in `dtype`."""
    size = model.config.action_dim
    unit = Normalizer(np.zeros(size, np.float32), np.ones(size, np.float32))
    state = Normalizer(np.zeros(model.config.proprio_dim, np.float32), np.ones(model.config.proprio_dim, np.float32))
    encoder = image_encoder(WanVae(WanVaeConfig(dim=16, dec_dim=8)))
    return aha_wam.stages(model.requires_grad_(False).to(dtype), encoder, state, unit)["denoise"]


def two_layers(dtype):
    """`denoise` of the small policy's widths, two blocks."""
    torch.manual_seed(0)
    config = aha_wam.AhaWamConfig(**{**aha_wam.small().to_json(), "num_layers": 2})
    return denoise(aha_wam.build(config), dtype)


def quantised(stage, kind, scale=0.05):
    layers = {
        name: quantized(layer, Scales(kind, torch.tensor(scale) if kind in tensorrt.FORMATS else None))
        for name, layer in find_layers({stage.name: stage}).items()
        if name[1] not in KEPT
    }
    assert len(layers) == len(find_layers({stage.name: stage})) - len(KEPT)
    return with_layers({stage.name: stage}, layers)[stage.name]


def test_a_half_type_engine_keeps_the_contract_of_its_stage_and_fuses_attention(tmp_path):
    stage = two_layers(torch.float16)
    record = json.loads(json.dumps(tensorrt.build(stage, tmp_path, BuildOptions("rtx-5090"))))
    for kind, specs in (("inputs", stage.inputs), ("outputs", stage.outputs)):
        assert record[kind] == [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in specs]
    assert {spec.dtype for spec in stage.inputs} == {"float32", "float16", "bool"}
    found = record["read_back"]
    assert found["formats"] == {"float16": 14} and found["attentions"] == {"found": 4, "fused": 4, "unfused": []}
    assert found["blocks"] == 2 and found["kernels_per_block"] <= MAX_KERNELS_PER_BLOCK
    assert (record["sm"], record["base"], record["library"]) == ("sm_120", "float16", "tensorrt_rtx")
    assert record["peak_memory_bytes"] > 1e8 and record["build_seconds"] > 0
    assert (tmp_path / record["file"]).stat().st_size == record["engine_bytes"]
    assert [path.name for path in tmp_path.iterdir()] == [record["file"]], "graphs and weights are gone again"


@pytest.mark.parametrize(("kind", "target"), [("fp8", "rtx-5090"), ("int8", "rtx-4090")])
def test_every_planned_layer_is_a_product_of_codes(kind, target, tmp_path):
    plain, stage = two_layers(torch.bfloat16), quantised(two_layers(torch.bfloat16), kind)
    record = tensorrt.build(stage, tmp_path, BuildOptions(target))
    found = record["read_back"]
    assert found["formats"] == {kind: 12, "bfloat16": 2} and found["gemms"][kind] == 12
    assert {name for name, seen in found["products"].items() if seen == "bfloat16"} == set(KEPT)
    assert found["attentions"]["fused"] == 4
    assert found["weight_bytes"] < 0.6 * plain.cost.weight_bytes
    assert found["kernels_per_block"] <= MAX_KERNELS_PER_BLOCK


@pytest.mark.parametrize("kind", tensorrt.FORMATS)
def test_the_golden_denoise_stage_builds_in_both_formats(kind, tmp_path):
    stage = quantised(denoise(golden.model(), torch.bfloat16), kind)
    record = tensorrt.build(stage, tmp_path, BuildOptions("gb10"))
    assert record["sm"] == "sm_121" and record["read_back"]["formats"][kind] == 6 * golden.config().num_layers


def test_weight_only_int8_is_undone_by_the_library_and_refused_by_us(tmp_path):
    stage = quantised(two_layers(torch.bfloat16), "int8_weights")
    graph = export_onnx(stage, tmp_path)
    built = build_in_child(graph.path, tmp_path / "e.engine", "rtx", "sm_120", stage.name)
    found = read_back(built, graph)
    assert "int8" not in found.gemms, "the library has learnt to keep it: let `supports` allow it"
    with pytest.raises(GateError, match=r"plan was not honoured: layer 'qkv.0.project' of stage 'denoise'.*int8_weights"):
        found.require({name: kind for name, kind in graph.products.items() if name not in KEPT}, stage.name, "rtx-5090")


def test_the_library_itself_refuses_fp8_below_sm_89(tmp_path):
    graph = export_onnx(quantised(two_layers(torch.bfloat16), "fp8"), tmp_path)
    with pytest.raises(EdgewamError, match=r"stage 'denoise'.*sm_80.*fp8"):
        build_in_child(graph.path, tmp_path / "e.engine", "rtx", "sm_80", "denoise")


class Volume(nn.Module):
    """Something that TensorRT has no operator for."""

    def forward(self, x):
        """x [3, 4, 4] -> determinants [3]."""
        return (torch.linalg.det(x + 1),)


def test_a_node_that_the_library_cannot_take_is_named_with_its_stage(tmp_path):
    stage = Stage("volume", (TensorSpec("x", (3, 4, 4)),), (TensorSpec("y", (3,)),), Cost(0, 0, 1, 1), Volume())
    with pytest.raises(EdgewamError, match=r"cannot take node '\w+' \(Det\) of stage 'volume': UNSUPPORTED_NODE"):
        tensorrt.build(stage, tmp_path, BuildOptions("rtx-5090"))
    assert not list(tmp_path.iterdir())


def test_a_builder_that_dies_is_an_error_and_not_a_death(tmp_path, monkeypatch):
    monkeypatch.setattr("edgewam.compile.tensorrt_engine.FUNCTION", f"{__name__}.die")
    with pytest.raises(EdgewamError, match=r"Building the engine of stage 'denoise' failed: it crashed .SIGSEGV."):
        build_in_child(Path("graph"), tmp_path / "e.engine", "rtx", "sm_120", "denoise")


def die(**arguments):
    """What a crashing library does to the child."""
    signal.raise_signal(signal.SIGSEGV)


class Borders(nn.Module):
    """Every dtype that stages have at their borders."""

    def forward(self, image, slot, mask, keys, rows):
        """image uint8 [4, 6, 3], slot int64 [1], mask bool [6], keys bfloat16 [3, 6], rows float32 [5, 6]."""
        picture = image.permute(2, 0, 1).float().mean(1)  # [3, 6]
        chosen = torch.where(mask, rows[slot], picture) + keys.float()
        return chosen, chosen.to(torch.bfloat16), mask, slot + 1


def test_every_dtype_of_stage_borders_is_taken_as_it_is(tmp_path):
    inputs = (
        TensorSpec("image", (4, 6, 3), "uint8"), TensorSpec("slot", (1,), "int64"), TensorSpec("mask", (6,), "bool"),
        TensorSpec("keys", (3, 6), "bfloat16"), TensorSpec("rows", (5, 6)),
    )  # fmt: skip
    outputs = (
        TensorSpec("chosen", (3, 6)), TensorSpec("half", (3, 6), "bfloat16"), TensorSpec("same", (6,), "bool"),
        TensorSpec("next", (1,), "int64"),
    )  # fmt: skip
    record = tensorrt.build(Stage("borders", inputs, outputs, Cost(0, 0, 1, 1), Borders()), tmp_path, BuildOptions("rtx-5090"))
    assert [(t["name"], t["dtype"]) for t in record["inputs"]] == [(s.name, s.dtype) for s in inputs]
    assert [(t["name"], t["dtype"]) for t in record["outputs"]] == [(s.name, s.dtype) for s in outputs]


def test_the_test_stage_is_the_stage_that_ships():
    assert isinstance(two_layers(torch.float32).function, DenoiseStage)

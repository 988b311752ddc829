"""Targets come from the device files; what a target cannot do is refused before anything is exported."""

import importlib.util
from pathlib import Path

import pytest
import torch

from edgewam.compile.backends import eager, onnxruntime, tensorrt
from edgewam.compile.build_options import BuildOptions
from edgewam.compile.tensorrt_targets import find_target, targets
from edgewam.core.errors import MissingExtraError, PluginError
from edgewam.profiles.device import device_names, load_device
from edgewam.quantize.layers import Scales, find_layers, quantized, with_layers
from edgewam.runtime.cuda_api import CudaDevice
from edgewam.runtime.tensorrt_api import RTX_SMS
from tests.quantize.toy import toy_stages

GPUS = {name: sm for name in device_names() if (sm := load_device(name).sm)}


def quantised(kind):
    stages = toy_stages()
    layers = {name: layer for name, layer in find_layers(stages).items() if isinstance(layer, torch.nn.Linear)}
    return with_layers(stages, {n: quantized(layer, Scales(kind, torch.tensor(0.1))) for n, layer in layers.items()})["net"]


def test_every_gpu_is_a_target_with_the_capability_of_its_file():
    assert {name: t.sm for name, t in targets().items()} == GPUS


def test_rtx_cards_are_built_for_anywhere_and_the_others_on_the_device():
    families = {name: t.family for name, t in targets().items()}
    assert {n for n, f in families.items() if f == "rtx"} == {"rtx-5090", "rtx-5090d", "rtx-4090", "gb10"}
    assert {"thor", "orin", "h100", "h200"} <= {n for n, f in families.items() if f == "full"}


@pytest.mark.parametrize("options", [BuildOptions("rtx5090"), BuildOptions()])
def test_an_unknown_or_missing_target_lists_the_known(options, tmp_path):
    with pytest.raises(PluginError, match=r"rtx-5090.*Built on the device itself: .*thor") as caught:
        tensorrt.build(toy_stages()["net"], tmp_path, options)
    assert all(name in str(caught.value) for name in GPUS)


def test_fp8_is_refused_on_a_card_without_it_with_the_alternative(tmp_path):
    with pytest.raises(PluginError, match=r"Layer 'up' of stage 'net' is in fp8.*'orin' \(sm_87\).*Give it int8"):
        tensorrt.build(quantised("fp8"), tmp_path, BuildOptions("orin"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "allowed"), [("rtx-5090", True), ("thor", True), ("rtx-4090", False), ("h100", False)])
def test_fp4_exists_from_sm_100_on(name, allowed):
    target = find_target(name)
    assert (int(target.sm.removeprefix("sm_")) >= 100) is allowed
    if allowed:
        target.require_format("fp4", "Layer 'up'")
    else:
        with pytest.raises(PluginError, match=r"fp4.*no matrix unit.*Give it fp8"):
            target.require_format("fp4", "Layer 'up'")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="full TensorRT is installed here")
@pytest.mark.parametrize("name", ["thor", "orin", "h100"])
def test_a_target_of_full_tensorrt_says_where_to_build_and_where_to_get_it(name, tmp_path):
    with pytest.raises(MissingExtraError, match=r"on the device itself.*NVIDIA's own package index"):
        tensorrt.build(toy_stages()["net"], tmp_path, BuildOptions(name))


def test_full_tensorrt_is_not_asked_to_build_for_another_gpu(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("edgewam.compile.tensorrt_targets.load_cudart", lambda: None)
    here = CudaDevice("NVIDIA H100", "sm_90", (13, 0), (13, 0))
    monkeypatch.setattr("edgewam.compile.tensorrt_targets.read_device", lambda cudart, index: here)
    find_target("h200").require_here()
    with pytest.raises(PluginError, match=r"'NVIDIA H100' \(sm_90\) and not 'thor' \(sm_110\).*on the device itself"):
        find_target("thor").require_here()


def test_formats_that_tensorrt_would_undo_are_refused_by_name():
    support = tensorrt.supports(quantised("int8_weights"))
    assert not support.ok and "'up'" in support.reason and "int8_weights" in support.reason


@pytest.mark.parametrize("backend", [eager, onnxruntime])
def test_backends_for_any_machine_refuse_a_target(backend):
    with pytest.raises(PluginError, match=r"'gb10'.*--backend tensorrt"):
        backend.check(BuildOptions("gb10"))


def test_the_rtx_library_knows_the_capabilities_that_we_say_it_knows():
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")
    known = {name for name in dir(trt.ComputeCapability) if name.startswith("SM")}
    assert known == {sm.upper().replace("_", "") for sm in RTX_SMS}


def test_the_table_of_the_docs_is_the_table_of_targets():
    text = (Path(__file__).parents[2] / "docs" / "hardware.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| sm_" in line]
    where = {"rtx": "on any machine, no GPU needed", "full": "on the device itself"}
    assert rows == [[t.name, t.sm, t.library, where[t.family], ", ".join(t.formats)] for t in targets().values()]

"""Weights alone in FP8 or INT4: what is stored is what kernels read; backends that would unpack it name the one that does not."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from edgewam.compile.backends import eager, onnxruntime, tensorrt
from edgewam.core.artifacts import read_manifest, write_artifact
from edgewam.core.errors import ContractError
from edgewam.kernels.reference import dequantized
from edgewam.quantize.artifact import WEIGHTS, QuantizedArtifact, packed_bytes, read_quantized, write_quantized
from edgewam.quantize.calibrate import calibrate
from edgewam.quantize.formats import FORMATS, WEIGHTS_ONLY
from edgewam.quantize.layers import Scales, find_layers, quantized, with_layers
from edgewam.quantize.named import named_plan
from edgewam.quantize.plan import PrecisionPlan, Rule
from tests.quantize.toy import toy_recording, toy_stages

IMAGE, ROWS = toy_recording(1).calls["net"][0]
NEW = ("fp8_weights", "int4_weights")
# relative error of the product of normal weights: E4M3 has 3 bits behind the point, and the largest of 64 normal numbers, which
# sets the step of four bits, is about 2.4 of their spread, so a step is a third of it
ERRORS = {"int8_weights": (1e-3, 0.02), "fp8_weights": (0.005, 0.05), "int4_weights": (0.03, 0.2)}


def layer_of(kind, **fields):
    return quantized(find_layers(toy_stages())["net", "up"], Scales(kind, **fields))


def test_the_formats_that_round_no_activations():
    assert WEIGHTS_ONLY == ("int8_weights", "fp8_weights", "int4_weights")
    assert not any(FORMATS[name].calibrated for name in WEIGHTS_ONLY)


@pytest.mark.parametrize("kind", WEIGHTS_ONLY)
def test_the_product_is_off_by_what_the_bits_leave_and_no_activation_is_rounded(kind):
    layer, made = find_layers(toy_stages())["net", "up"], layer_of(kind)
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(4))
    assert torch.equal(made.round_input(x), x)
    error = float((made(x) - layer(x)).norm() / layer(x).norm())
    least, most = ERRORS[kind]
    assert least < error < most


@pytest.mark.parametrize("group", [64, 128])
def test_four_bits_have_a_scale_for_each_group_of_inputs(group):
    layer = nn.Linear(256, 8)
    made = quantized(layer, Scales("int4_weights", group=group))
    assert made.weight_scale.shape == (8, 256 // group) and made.codes.dtype == torch.int8
    assert made.codes.min() >= -8 and made.codes.max() <= 7
    assert (made.codes.unflatten(1, (-1, group)).abs().amax(2) == 7).all(), "the largest weight of a group has the largest code"
    assert torch.equal(made.weight, dequantized(made.codes, made.weight_scale, torch.float32))
    assert made.packed_bytes == 8 * 256 // 2 + 4 * 8 * 256 // group


@pytest.mark.parametrize("kind", WEIGHTS_ONLY)
def test_what_is_read_computes_what_was_written(kind, tmp_path):
    stages = toy_stages()
    made = {("net", "up"): quantized(find_layers(stages)["net", "up"], Scales(kind))}
    with write_artifact(tmp_path / "student", "student", config={}) as out:
        (out / "model.txt").write_text("weights")
    plan = PrecisionPlan("mine", "fused", (Rule("net", "up", kind),))
    write_quantized(
        tmp_path / "q", made, plan, tmp_path / "student", read_manifest(tmp_path / "student").digest, {}, {"layers": []}
    )
    artifact = read_quantized(tmp_path / "q")
    assert artifact.precision == kind and artifact.plan == plan
    for a, b in zip(
        artifact.apply(toy_stages())["net"].function(IMAGE, ROWS),
        with_layers(stages, made)["net"].function(IMAGE, ROWS),
        strict=True,
    ):
        assert torch.equal(a, b)
    stored = artifact.tensors["net.up.codes"]
    assert stored.dtype == {"int8_weights": torch.int8, "fp8_weights": torch.float8_e4m3fn, "int4_weights": torch.uint8}[kind]
    assert torch.equal(dequantized(stored, artifact.tensors["net.up.weight_scale"], torch.float32), made["net", "up"].weight)
    assert packed_bytes(made)["packed"] == sum(t.numel() * t.element_size() for t in artifact.tensors.values())
    assert (tmp_path / "q" / WEIGHTS).stat().st_size < packed_bytes(made)["packed"] + 1000


@pytest.mark.parametrize(
    ("kinds", "precision"),
    [
        (("int8_dynamic", "int8", "int8_weights"), "int8"),
        (("fp8", "fp8_weights"), "fp8"),
        (("fp8_weights",), "fp8_weights"),
        (("int4_weights", "fp8"), "fp8+int4_weights"),
    ],
)
def test_the_precision_names_what_is_multiplied(kinds, precision):
    formats = {("net", str(i)): kind for i, kind in enumerate(kinds)}
    assert QuantizedArtifact.precision.fget(SimpleNamespace(formats=formats)) == precision


def test_calibration_has_nothing_to_measure():
    formats = {("net", "up"): "fp8_weights", ("net", "down"): "int4_weights"}
    assert calibrate(toy_stages(), formats, toy_recording(1), 0.5, 99.999) == {
        name: Scales(kind) for name, kind in formats.items()
    }


def test_named_plans_pack_all_but_convolutions_and_uneven_layers():
    layers = find_layers(toy_stages())
    fp8, int4 = (named_plan(name, layers, ["net"]) for name in NEW)
    assert fp8.backend == int4.backend == "fused" and not fp8.per_step
    assert {path: rule.format for (_, path), rule in fp8.resolve(layers).items()} == {
        "conv": "none", "up": "fp8_weights", "down": "fp8_weights",
    }  # fmt: skip
    assert {path: (rule.format, rule.reason) for (_, path), rule in int4.resolve(layers).items() if path != "conv"} == {
        "up": ("int4_weights", ""), "down": ("none", "its inputs are no multiple of 64, the group that shares a scale"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_where_activations_are_unsteady_the_fused_backend_still_gets_packed_weights(name):
    layers = find_layers(toy_stages())
    found = named_plan(name, layers, ["net"], "fused").resolve(layers)
    assert found["net", "up"].format == f"{name}_weights" and found["net", "up"].reason


def test_inputs_that_groups_do_not_divide_are_refused_by_name():
    layers = find_layers(toy_stages())
    plan = PrecisionPlan("mine", "fused", (Rule("net", "down", "int4_weights"),))
    with pytest.raises(ContractError, match=r"net\.down the format int4_weights, whose groups of 64 do not divide its 96 inputs"):
        plan.resolve(layers)
    with pytest.raises(ContractError, match="needs group to be one of 64, 128, got 32"):
        PrecisionPlan("mine", "fused", (), group=32)
    plan = PrecisionPlan("mine", "fused", (Rule("net", "up", "int4_weights"),), group=128)
    assert PrecisionPlan.from_json(plan.to_json()) == plan
    with pytest.raises(ContractError, match="groups of 128 do not divide its 64 inputs"):
        plan.resolve(layers)


@pytest.mark.parametrize("kind", NEW)
def test_backends_that_would_unpack_the_weights_name_the_one_that_does_not(kind):
    stage = with_layers(toy_stages(), {("net", "up"): layer_of(kind)})["net"]
    for support in (onnxruntime.supports(stage), tensorrt.supports(stage), eager.supports_float(stage, "Inductor")):
        assert not support.ok and f"'up' in {kind}" in support.reason and "--backend fused" in support.reason
    assert eager.supports(stage).ok and kind in eager.FORMATS, "the reference rounds as the kernels do"
    plan = PrecisionPlan(kind, "fused", (Rule("net", "up", kind),))
    for build, name in ((onnxruntime, "onnxruntime"), (tensorrt, "tensorrt")):
        with pytest.raises(
            ContractError, match="Compile it for the backend of the plan: edgewam compile POLICY BUNDLE --backend fused"
        ):
            plan.require_backend(build, name)

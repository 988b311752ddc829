"""Precision plans: bytes and formats of every stage, and what is refused before anything is printed."""

import json
from dataclasses import replace

import pytest

from edgewam.core.errors import EdgewamError
from edgewam.core.stage import Cost
from edgewam.profiles.device import load_device
from edgewam.profiles.model_costs import ModelCosts, StageWork
from edgewam.profiles.plan_costs import KEPT_STAGES, PACKINGS, UNSTEADY_STAGES, as_it_is, named, of_artifact

# 1000 weights, 900 of them in layers that do 3/4 of the operations; bf16
STEP = StageWork(Cost(2000, 4000, 16, 80), 900, 3000)
IMAGE = StageWork(Cost(400, 1000, 480, 20), 200, 1000)
MODEL = ModelCosts(
    "toy", "bf16", {"image_encoder": IMAGE, "step": STEP}, {"act": {"image_encoder": (1, 0), "step": (0, 1)}}, {"act": 2}
)
THOR, ORIN, CPU = (load_device(name) for name in ("thor", "orin", "cpu"))


@pytest.mark.parametrize(
    ("plan", "weight_bytes", "formats"),
    [
        ("bf16", 2000, {"bf16": 1.0}),
        ("fp16", 2000, {"fp16": 1.0}),
        ("fp8", 200 + 900, {"fp8": 0.75, "bf16": 0.25}),
        ("int8", 200 + 900, {"int8": 0.75, "bf16": 0.25}),
        ("fp8_weights", 200 + 900, {"bf16": 1.0}),
        ("int8_weights", 200 + 900, {"bf16": 1.0}),
        ("int4_weights", 200 + round(900 * (4 + 16 / 64) / 8), {"bf16": 1.0}),
        ("nvfp4", 200 + round(900 * (4 + 8 / 16) / 8), {"fp4": 0.75, "bf16": 0.25}),
        ("fp32", 4000, {"fp32": 1.0}),
    ],
)
def test_a_plan_sets_bytes_and_products_and_leaves_the_image_encoder(plan, weight_bytes, formats):
    planned = named(MODEL, plan, THOR)
    assert planned.costs["step"].weight_bytes == weight_bytes and planned.formats["step"] == formats
    assert planned.costs["step"].flops == 4000
    if plan not in ("fp32", "fp16"):
        assert planned.costs["image_encoder"] == IMAGE.cost and planned.formats["image_encoder"] == {"bf16": 1.0}


@pytest.mark.parametrize(
    ("plan", "device", "kept"),
    [("fp8", THOR, True), ("int8", THOR, True), ("int8", ORIN, True), ("int8", CPU, False), ("nvfp4", THOR, False),
     ("int8_weights", THOR, False), ("fp8,text=fp8,state=fp8", THOR, False)],
)  # fmt: skip
def test_stages_that_calibration_hardly_sees_stay_plain_where_scales_are_static(plan, device, kept):
    model = replace(MODEL, stages={"text": STEP, "state": STEP, "step": STEP})
    planned = named(model, plan, device)
    for name in ("text", "state"):
        assert (planned.costs[name] == STEP.cost) is kept
        assert (planned.formats[name] == {"bf16": 1.0}) is (kept or plan.endswith("_weights"))
        assert (f"{name} in bf16" in planned.text) is kept
    assert planned.costs["step"].weight_bytes != STEP.cost.weight_bytes


def test_the_named_plans_of_the_quantiser_leave_the_same_stages():
    """The rule is written down twice, once for layers and once for costs: the same stages of the small policy."""
    from edgewam.cli._shipped import shipped

    pytest.importorskip("torch", reason="needs edgewam[train]")
    from edgewam.recipes.quantization import plan_quantization

    for name in ("fp8", "int8"):
        found = plan_quantization(shipped("student"), name, backend="tensorrt")
        packed = {stage for stage, _ in found.formats}
        left = {stage for stage, _ in found.layers} - packed
        assert left == {*KEPT_STAGES, *UNSTEADY_STAGES}


def test_every_plan_is_tested_here():
    tested = [mark.args[1] for mark in test_a_plan_sets_bytes_and_products_and_leaves_the_image_encoder.pytestmark]
    assert {row[0] for row in tested[0]} == set(PACKINGS)


def test_a_stage_can_have_its_own_plan():
    planned = named(MODEL, "fp8,image_encoder=int8,step=bf16", THOR)
    assert planned.costs["image_encoder"].weight_bytes == 200 and planned.formats["image_encoder"] == {"int8": 1.0, "bf16": 0.0}
    assert planned.costs["step"] == STEP.cost
    assert "image_encoder in int8" in planned.text and "step in bf16" in planned.text


def test_float32_doubles_keys_and_values_and_a_processor_counts_in_it():
    assert named(MODEL, "fp32", CPU).costs["step"].io_bytes == 160
    packed = named(MODEL, "int8", CPU)
    assert packed.costs["step"].weight_bytes == 400 + 900 and packed.formats["step"] == {"int8": 0.75, "fp32": 0.25}
    assert packed.costs["image_encoder"].weight_bytes == 800


@pytest.mark.parametrize(
    ("plan", "device", "message"),
    [
        ("fp8", ORIN, "FP8 needs sm_89; NVIDIA Jetson AGX Orin 64GB is sm_87: use int8"),
        ("nvfp4", load_device("rtx-4090"), "FP4 needs sm_100"),
        ("int8,step=nvfp4", load_device("h200"), "FP4 needs sm_100"),
        ("bf16", CPU, "has no CUDA: use fp32"),
        ("fp9", THOR, "Unknown plan 'fp9'. Available: fp32, bf16"),
        ("fp8,stpe=bf16", THOR, r"names the stages \['stpe'\]. Available: image_encoder, step"),
        ("fp8,step", THOR, "Unknown plan ''"),
    ],
)
def test_what_cannot_be_is_refused_early(plan, device, message):
    with pytest.raises(EdgewamError, match=message):
        named(MODEL, plan, device)


@pytest.mark.parametrize("plan", ["fp8_weights", "int8_weights", "int4_weights"])
def test_weight_only_plans_need_no_matrix_unit_of_that_format(plan):
    assert named(MODEL, plan, ORIN).formats["step"] == {"bf16": 1.0}


def test_a_quantised_bundle_is_taken_as_it_is():
    ours = replace(MODEL, precision="int8")
    planned = as_it_is(ours, THOR)
    assert planned.costs["step"] == STEP.cost and planned.formats["step"] == "int8"
    assert as_it_is(replace(MODEL, precision="fp32"), THOR).formats["step"] == "bf16", "no float32 rate: counted as bf16"
    assert as_it_is(replace(MODEL, precision="int8+fp8"), load_device("rtx-5090")).formats["step"] == "int8", "the faster one"
    with pytest.raises(EdgewamError, match="int8 already"):
        named(ours, "fp8", THOR)
    with pytest.raises(EdgewamError, match="FP8 needs sm_89"):
        as_it_is(replace(MODEL, precision="fp8"), ORIN)


def test_a_mixed_bundle_counts_each_stage_in_what_its_engine_showed():
    seen = {"image_encoder": ("bf16",), "step": ("bf16", "fp8")}
    planned = as_it_is(replace(MODEL, precision="fp8+bf16", read_back=seen), THOR)
    assert planned.formats == {"image_encoder": "bf16", "step": "fp8"} and "read back" in planned.text
    assert "counted" not in planned.text
    assert as_it_is(replace(MODEL, precision="fp8+bf16", read_back={"step": ()}), THOR).formats["step"] == "bf16"


def test_without_records_a_floor_of_several_formats_says_that_it_counts_the_fastest():
    for precision in ("fp8+bf16", "int8"):  # the second has float32 beside it, unnamed
        planned = as_it_is(replace(MODEL, precision=precision), THOR)
        best = precision.split("+")[0]
        assert set(planned.formats.values()) == {best} and f"all products counted at the rate of {best}" in planned.text
    partly = as_it_is(replace(MODEL, precision="fp8+bf16", read_back={"image_encoder": ("bf16",)}), THOR)
    assert partly.formats == {"image_encoder": "bf16", "step": "fp8"}
    assert "all products of step counted at the rate of fp8" in partly.text
    assert as_it_is(MODEL, THOR).text == "as it is", "one format: nothing to say"
    assert "rate of bf16" in as_it_is(replace(MODEL, precision="fp32"), THOR).text


def artifact(path, layers):
    (path / "manifest.json").write_text(json.dumps({"measured": {"layers": layers}}))
    return path / "plan.json"


def layer(stage, kind, weights, packed):
    return {"stage": stage, "layer": "x", "format": kind, "float32_bytes": 4 * weights, "packed_bytes": {kind: packed}}


def test_the_layers_of_an_artifact_set_the_bytes_of_their_stages(tmp_path):
    plan = artifact(tmp_path, [layer("step", "int8_dynamic", 500, 510), layer("step", "int8_weights", 100, 104),
                               layer("image_encoder", "none", 50, 0)])  # fmt: skip
    planned = of_artifact(MODEL, plan, THOR)
    assert planned.costs["step"].weight_bytes == 2000 - 2 * 600 + 614 and planned.formats["step"] == "int8"
    assert planned.costs["image_encoder"] == IMAGE.cost and planned.formats["image_encoder"] == "bf16"


def test_weight_only_layers_keep_plain_products(tmp_path):
    assert of_artifact(MODEL, artifact(tmp_path, [layer("step", "int8_weights", 500, 510)]), THOR).formats["step"] == "bf16"


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([layer("stop", "int8", 1, 1)], r"names the stages \['stop'\]"),
        ([layer("step", "int8", 5000, 5000)], "packs 5000 weights of 'step', which has 900: another policy's"),
        ([layer("step", "fp8", 500, 510)], "FP8 needs sm_89"),
        ([{"stage": "step"}], "is no plan of a quantised artifact"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers, message, tmp_path):
    with pytest.raises(EdgewamError, match=message):
        of_artifact(MODEL, artifact(tmp_path, layers), ORIN)


def test_a_plan_without_its_artifact_says_how_to_make_one(tmp_path):
    with pytest.raises(EdgewamError, match="edgewam quantize"):
        of_artifact(MODEL, tmp_path / "plan.json", THOR)

"""What a model costs without the model: a bundle's manifest and the stored sizes agree with the programs that run."""

import json

import pytest

from edgewam.cli._shipped import shipped
from edgewam.core.artifacts import read_manifest
from edgewam.core.errors import EdgewamError
from edgewam.core.program import Call, Loop, Program, Push
from edgewam.profiles.model_costs import ModelCosts, calls_of, of_manifest, read_model

STEP = Call("step", {}, {})
PROGRAM = Program(
    "act", (), (), setup=(Call("image", {}, {}), STEP, Push("a", "b", "c")), loop=Loop((STEP, Call("mix", {}, {}), STEP), {}, 5),
    finish=(Call("image", {}, {}),),
)  # fmt: skip


def test_calls_are_those_of_setup_rows_and_finish():
    assert [PROGRAM.num_calls(stage) for stage in ("image", "step", "mix", "other")] == [2, 11, 5, 0]
    assert calls_of(PROGRAM, ["step", "mix", "image", "other"]) == {"step": (1, 2), "mix": (0, 1), "image": (2, 0)}


def test_a_manifest_gives_costs_calls_and_steps_of_the_shipped_bundle():
    config = read_manifest(shipped("bundle"), kind="bundle").config
    model = of_manifest(config, "small")
    assert model.precision == "fp32" and model.steps == {"prompt": 0, "plan": 0, "act": 2}
    assert model.calls("act") == {"image_encoder": 1, "router": 1, "state": 1, "begin": 1, "denoise": 2, "finish": 1}
    declared = {entry["stage"]["name"]: entry["stage"]["cost"] for entry in config["stages"]}
    for name, work in model.stages.items():
        assert (work.cost.flops, work.cost.weight_bytes) == (declared[name]["flops"], declared[name]["weight_bytes"])
        assert work.packable_weights == work.cost.weight_bytes // 4, "a manifest names no layers: every weight may be packed"


def test_the_full_size_has_the_programs_of_the_small_one():
    config = read_manifest(shipped("bundle"), kind="bundle").config
    full, small = read_model("aha_wam_full"), of_manifest(config, "small")
    assert full.programs == small.programs and full.steps == small.steps


def test_the_formats_of_products_are_those_that_were_read_back_from_engines():
    config = dict(read_manifest(shipped("bundle"), kind="bundle").config)
    formats = {"denoise": {"fp8": 24, "bfloat16": 2, "unknown": 1}, "state": {"bfloat16": 3}, "text": {"unknown": 1}}
    config["stages"] = [
        {**entry, "record": {**entry["record"], "read_back": {"formats": formats[name]}}} if name in formats else entry
        for entry in config["stages"]
        for name in [entry["stage"]["name"]]
    ]
    model = of_manifest(config, "engines")
    assert model.read_back == {"denoise": ("fp8", "bf16"), "state": ("bf16",), "text": ()}
    assert ModelCosts.from_json(json.loads(json.dumps(model.to_json()))) == model


def test_costs_survive_json():
    model = read_model("aha_wam_full")
    assert ModelCosts.from_json(json.loads(json.dumps(model.to_json()))) == model


def test_what_is_missing_is_said_with_what_to_do():
    with pytest.raises(EdgewamError, match=r"python -m edgewam\.recipes\.roofline_table"):
        read_model("fast_wam_full")
    with pytest.raises(EdgewamError, match="Compile it again"):
        of_manifest({"stages": []}, "a bundle")

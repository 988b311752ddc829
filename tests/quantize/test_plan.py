"""Precision plans: the first rule that matches decides, and what does not exist is refused with the nearest names."""

import json
from types import SimpleNamespace

import pytest

from edgewam.core import plugins
from edgewam.core.errors import ContractError
from edgewam.quantize.layers import find_layers
from edgewam.quantize.named import candidates, named_plan
from edgewam.quantize.plan import PrecisionPlan, Rule
from tests.quantize.toy import toy_stages


@pytest.fixture(scope="module")
def layers():
    return find_layers(toy_stages())


def plan(*rules, **fields):
    return PrecisionPlan("mine", "onnxruntime", tuple(Rule(*rule) for rule in rules), **fields)


def test_every_linear_layer_and_convolution_is_found(layers):
    assert list(layers) == [("net", "conv"), ("net", "up"), ("net", "down")]


def test_the_first_rule_that_matches_decides(layers):
    found = plan(("net", "up", "none", "kept"), ("*", "[ud]*", "int8_dynamic")).resolve(layers)
    assert {path: rule.format for (_, path), rule in found.items()} == {"up": "none", "down": "int8_dynamic"}


def test_a_plan_survives_its_file(tmp_path, layers):
    written = plan(("net", "up", "int8", "because"), alpha=0.4, percentile=99.9)
    (tmp_path / "plan.json").write_text(json.dumps(written.to_json()))
    assert PrecisionPlan.read(tmp_path / "plan.json") == written


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("nett", "up", "int8"), r"no stage with layers is called that\. Nearest: net"),
        (("net", "upp", "int8"), r"no layer of net is called that\. Nearest: up"),
        (("net", "conv", "int8_dynamic"), r"convolution net\.conv.*linear layers only"),
    ],
)
def test_a_rule_that_fits_nothing_is_refused_with_the_nearest_names(layers, rule, message):
    with pytest.raises(ContractError, match=message):
        plan(rule).resolve(layers)


def test_an_unknown_format_is_refused_with_the_nearest_name():
    with pytest.raises(ContractError, match=r"unknown format 'int9'\. Nearest: int8"):
        plan(("net", "up", "int9"))


def test_a_format_that_the_backend_would_turn_back_is_refused():
    with pytest.raises(ContractError, match="asks for fp8, which the backend 'onnxruntime' would turn back"):
        plan(("net", "up", "fp8")).require_backend(SimpleNamespace(FORMATS=("int8", "int8_dynamic")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "version 9"),
        ({"percentle": 99}, "unknown field 'percentle'. Nearest: percentile"),
        ({"percentile": 10}, "percentile in 50..100"),
        ({"rules": [{"stage": "net"}]}, "no precision plan"),
        ({"rules": [{"stage": "net", "layer": "up", "format": "int8", "scale": 2}]}, "no precision plan"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path, change, message):
    data = plan(("net", "up", "int8")).to_json() | change
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(ContractError, match=message):
        PrecisionPlan.read(tmp_path / "plan.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_broken_json_is_refused(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ContractError, match=r"plan\.json"):
        PrecisionPlan.read(tmp_path / "plan.json")


def test_named_plans_fit_the_layers_they_are_made_for(layers):
    int8 = named_plan("int8", layers).resolve(layers)
    assert {path: rule.format for (_, path), rule in int8.items()} == {"conv": "none", "up": "int8", "down": "int8"}
    auto = candidates(layers).resolve(layers)
    assert {path: rule.format for (_, path), rule in auto.items()} == {
        "conv": "int8",
        "up": "int8_dynamic",
        "down": "int8_dynamic",
    }
    fp8 = named_plan("fp8", layers).resolve(layers)
    assert {path: rule.format for (_, path), rule in fp8.items()} == {"conv": "none", "up": "fp8", "down": "fp8"}


def test_stages_that_calibration_hardly_sees_measure_when_they_run(layers):
    for plan in (named_plan("int8", layers, {"net"}), candidates(layers, {"net"})):
        found = {path: rule.format for (_, path), rule in plan.resolve(layers).items()}
        assert found == {"conv": "none", "up": "int8_dynamic", "down": "int8_dynamic"}


def test_an_unknown_name_lists_the_named_plans(layers):
    with pytest.raises(ContractError, match="Named plans: int8, fp8, fp8_weights, int4_weights, auto"):
        named_plan("int4", layers)


def test_scales_per_step_are_refused_where_a_backend_does_not_take_them(layers):
    chosen = plan(("net", "up", "int8"), per_step=True)
    with pytest.raises(ContractError, match="one activation scale per step, which the backend 'onnxruntime' does not take"):
        chosen.require_backend(plugins.load("backend_build", "onnxruntime"))
    chosen.require_backend(plugins.load("backend_build", "eager"), "eager")
    assert PrecisionPlan.from_json(chosen.to_json()) == chosen


def test_named_plans_follow_the_backend_that_is_asked_for(layers):
    own = {name: named_plan(name, layers, ["net"]) for name in ("int8", "fp8")}
    assert (own["int8"].backend, own["int8"].per_step) == ("onnxruntime", False)
    assert (own["fp8"].backend, own["fp8"].per_step) == ("eager", True)
    for name in own:
        asked = named_plan(name, layers, (), "tensorrt")
        assert (asked.backend, asked.per_step) == ("tensorrt", name == "fp8")
        formats = {path: rule.format for (_, path), rule in asked.resolve(layers).items()}
        assert formats == {"conv": "none", "up": name, "down": name}
        # no engine of TensorRT measures ranges at run time, and weights alone it would turn back
        unsteady = named_plan(name, layers, ["net"], "tensorrt").resolve(layers)
        assert {rule.format for rule in unsteady.values()} == {"none"}

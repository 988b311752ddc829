"""Compile plans in other precisions: what a backend or a device would undo is refused before any work, with what to do."""

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgewam.cli._shipped import SMALL
from edgewam.core.artifacts import read_manifest
from edgewam.core.errors import EdgewamError
from edgewam.quantize.artifact import write_quantized
from edgewam.quantize.layers import Scales, find_layers, quantized
from edgewam.quantize.plan import PrecisionPlan, Rule
from edgewam.recipes.deploy import compile_plan
from edgewam.recipes.quantization import plan_quantization

STUDENT, INT8 = SMALL / "student", SMALL / "quantized"
KEYS = {"context", "memory", "planner_text", "executor_text"}


@pytest.fixture
def static_engine(monkeypatch) -> str:
    """A backend that multiplies W8A8 with static scales only, as TensorRT does."""
    module = types.ModuleType("static_engine")
    module.build, module.FORMATS, module.PRECISIONS = None, ("int8", "fp8"), ("float32", "bf16", "fp16")
    module.__name__ = "a.static_engine"
    monkeypatch.setitem(sys.modules, "a", types.ModuleType("a"))
    monkeypatch.setitem(sys.modules, "a.static_engine", module)
    return "a.static_engine"


@pytest.fixture(scope="module")
def fp8(tmp_path_factory) -> Path:
    """The shipped student with two FP8 layers, one scale per step each."""
    out = tmp_path_factory.mktemp("deploy") / "fp8"
    layers = find_layers(compile_plan(STUDENT, "eager", threads=1).stages)
    names = [("denoise", "ffn.0.up"), ("denoise", "ffn.0.down")]
    made = {name: quantized(layers[name], Scales("fp8", torch.tensor([0.02, 0.03]))) for name in names}
    plan = PrecisionPlan("mine", "eager", (Rule("denoise", "ffn.0.*", "fp8"),), per_step=True)
    write_quantized(out, made, plan, STUDENT, read_manifest(STUDENT).digest, {"plan": "mine"}, {})
    return out


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_and_keys_take_the_base_precision(precision, dtype):
    plan, exact = compile_plan(STUDENT, "eager", precision=precision), compile_plan(STUDENT, "eager")
    name = str(dtype).removeprefix("torch.")
    assert {s.spec.name for s in plan.programs.states if s.spec.dtype == name} == KEYS
    assert plan.config["precision"] == precision and exact.config["precision"] == "fp32"
    for stage in ("denoise", "planner", "router", "image_encoder"):
        assert all(p.dtype == dtype for p in plan.stages[stage].function.parameters())
        assert plan.stages[stage].cost.weight_bytes < 0.56 * exact.stages[stage].cost.weight_bytes  # tables stay float32


def test_tables_are_rounded_as_the_policy_says(monkeypatch):
    from edgewam.training import policy_artifact

    assert compile_plan(STUDENT, "eager").config["tables"] == "float32"
    load = policy_artifact.load_policy

    def released(path):
        loaded = load(path)
        return replace(loaded, facts=replace(loaded.facts, sampler_tables="bf16"))

    monkeypatch.setattr(policy_artifact, "load_policy", released)
    plan = compile_plan(STUDENT, "eager")
    deltas = torch.from_numpy(plan.programs.constants["deltas"])
    assert plan.config["tables"] == "bf16" and torch.equal(deltas, deltas.bfloat16().float())


def test_precisions_that_do_not_exist_or_that_a_backend_would_turn_back_are_refused():
    with pytest.raises(EdgewamError, match="Unknown precision 'fp4'"):
        compile_plan(STUDENT, "eager", precision="fp4")
    with pytest.raises(EdgewamError, match="'onnxruntime' computes in float32; it would turn bf16 back"):
        compile_plan(STUDENT, "onnxruntime", precision="bf16")


def test_a_plan_of_one_backend_is_refused_for_another_that_would_undo_it(static_engine, fp8):
    with pytest.raises(EdgewamError, match=r"quantised for the backend 'onnxruntime'.*int8_(dynamic|weights), which the backend"):
        compile_plan(INT8, static_engine)
    with pytest.raises(EdgewamError, match=r"quantised for the backend 'eager'.*fp8, which the backend 'onnxruntime'"):
        compile_plan(fp8, "onnxruntime")
    with pytest.raises(EdgewamError, match="one activation scale per step"):
        compile_plan(fp8, static_engine)
    assert compile_plan(INT8, "onnxruntime").config["precision"] == "int8"


def test_scales_per_step_reach_the_program_in_every_base_precision(fp8):
    for precision, named in (("float32", "fp8"), ("bf16", "fp8+bf16")):
        plan = compile_plan(fp8, "eager", precision=precision)
        plan.programs.check(plan.stages)
        assert plan.programs.constants["scale_rows"].shape == (2, 2) and plan.config["precision"] == named
        assert plan.stages["denoise"].inputs[-1].name == "scale_row"


def test_a_device_without_the_format_is_refused_early(fp8):
    with pytest.raises(EdgewamError, match="FP8 needs sm_89"):
        compile_plan(fp8, "eager", target="orin")
    compile_plan(fp8, "eager", target="rtx-5090")


def test_a_plan_file_is_not_bent_to_another_backend(tmp_path):
    rules = [{"stage": "denoise", "layer": "ffn.0.up", "format": "int8"}]
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"version": 1, "name": "mine", "backend": "onnxruntime", "rules": rules}))
    with pytest.raises(EdgewamError, match="for the backend 'onnxruntime', not for 'eager'"):
        plan_quantization(STUDENT, str(file), backend="eager")


def test_a_named_plan_is_made_for_the_backend_that_is_asked_for():
    assert plan_quantization(STUDENT, "int8").precision.backend == "onnxruntime"
    assert plan_quantization(STUDENT, "int8", backend="eager").precision.backend == "eager"

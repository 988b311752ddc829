"""`edgewam quantize` and what follows it: calibrate, compile to integer kernels, validate against the unquantised student."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgewam.cli.quantize import show
from edgewam.core.artifacts import read_manifest
from tests.cli.command import here

# One stage, so that a test takes seconds; both formats, so that both kinds of kernels are met.
RULES = [
    {"stage": "denoise", "layer": "qkv.*", "format": "int8", "reason": "static"},
    {"stage": "denoise", "layer": "ffn.*.down", "format": "int8_dynamic", "reason": "dynamic"},
]
NUM_LAYERS = 8  # four blocks, two layers each
QUICK = ("--episodes", 1, "--frames", 2, "--threads", 1)
BOUND = 0.5  # median excess error ratio of eight layers over two frames; 0.1 is what a whole policy is held to


def plan_file(path: Path, rules=RULES, **fields) -> Path:
    path.write_text(json.dumps({"version": 1, "name": "mine", "backend": "onnxruntime", "rules": rules, **fields}))
    return path


@pytest.fixture(scope="module")
def quantized(tmp_path_factory, dataset, shipped) -> tuple[Path, dict]:
    """The shipped student, quantised by the command itself."""
    pytest.importorskip("modelopt", reason="needs edgewam[quant]")
    pytest.importorskip("onnxruntime", reason="needs edgewam[onnx]")
    place = tmp_path_factory.mktemp("quantized")
    plan = plan_file(place / "plan.json")
    done = here("quantize", shipped / "student", dataset, place / "int8", "--plan", plan, *QUICK, "--json").ok()
    return place / "int8", done.json


@pytest.fixture(scope="module")
def bundle(quantized) -> Path:
    """Its bundle."""
    here("compile", quantized[0], quantized[0].parent / "bundle", "--threads", 1, "--json").ok()
    return quantized[0].parent / "bundle"


def test_every_layer_has_its_error_its_time_and_its_reason(quantized):
    chosen = [row for row in quantized[1]["layers"] if row["format"] != "none"]
    assert len(chosen) == NUM_LAYERS == quantized[1]["bytes"]["layers"]
    for row in chosen:
        assert 0 < row["error"][row["format"]] < BOUND
        assert row["ms"][row["format"]] > 0 and 0 < row["time_share"] < 1
        assert row["reason"] in ("static", "dynamic")
    assert quantized[1]["bytes"]["float32"] > 3.5 * quantized[1]["bytes"]["packed"]
    assert 0 < quantized[1]["excess_error_median"] < BOUND


def measured(float32_ms=0.0, ms=None, **figures):
    """What `quantize_policy` returns, of one layer."""
    row = {"stage": "denoise", "layer": "ffn.0.up", "format": "fp8", "float32_ms": float32_ms, "ms": ms or {}, "reason": "mine",
           "error": {"fp8": 0.03}}  # fmt: skip
    size = {"layers": 1, "float32": 400, "packed": 100, "float32_elsewhere": 0}
    return {"layers": [row], "bytes": size, "excess_error_median": 0.05, "excess_error_p99": 0.2, "num_frames": 2, **figures}


def test_times_are_shown_only_where_layers_were_timed(capsys):
    show(measured())
    untimed = capsys.readouterr().err
    assert "ffn.0.up" in untimed and "us " not in untimed and "0.000" not in untimed
    show(measured(0.123, {"fp8": 0.0625}))
    timed = capsys.readouterr().err
    assert "float32 us" in timed and "123" in timed and "62.5" in timed


@pytest.mark.parametrize("figures", [{"excess_error_median": 0.11}, {"excess_error_p99": 0.51}])
def test_an_error_over_the_limits_warns_and_says_what_to_do(figures, capsys):
    show(measured(**figures))
    said = capsys.readouterr().err
    assert "WARNING: over the limits of a quantised policy, median 0.1 and p99 0.5" in said
    assert "--plan int8" in said and "--plan auto" in said and "denoise.ffn.0.up" in said
    row = measured()["layers"][0] | {"format": "int8", "error": {"int8": 0.03}}
    show(measured(**figures, layers=[row]))
    said = capsys.readouterr().err
    assert "WARNING" in said and "--plan int8" not in said, "it is int8 already"


def test_an_error_at_the_limits_does_not_warn(capsys):
    show(measured(excess_error_median=0.1, excess_error_p99=0.5))
    assert "WARNING" not in capsys.readouterr().err


def test_the_artifact_names_the_student_and_the_calibration(quantized, shipped):
    manifest = read_manifest(quantized[0], kind="quantized")
    assert manifest.parents == {"policy": read_manifest(shipped / "student").digest}
    assert manifest.config["calibration"]["chunks"] > 10 and manifest.config["num_action_steps"] == 2
    assert here("inspect", quantized[0], "--json").ok().json["kind"] == "quantized"


def test_the_bundle_is_smaller_says_int8_and_multiplies_integers(bundle, quantized, shipped):
    import onnx

    from edgewam.compile.integer_onnx import integer_kernels

    config = read_manifest(bundle).config
    assert config["precision"] == "int8" and config["num_action_steps"] == 2
    assert read_manifest(bundle).parents["quantized"] == read_manifest(quantized[0]).digest
    file = Path("stages/denoise.onnx")
    assert (bundle / file).stat().st_size < 0.8 * (shipped / "bundle" / file).stat().st_size
    kinds = [node.op_type for node in onnx.load(bundle / file).graph.node]
    assert kinds.count("MatMulInteger") == kinds.count("DynamicQuantizeLinear") == NUM_LAYERS // 2
    assert not integer_kernels(onnx.load(shipped / "bundle" / file))


def test_validate_judges_the_bundle_against_the_unquantised_student(bundle, dataset, shipped):
    done = here("validate", bundle, shipped / "student", dataset, "--frames", 2, "--threads", 1, "--json").ok()
    actions, stages = done.json["actions"], done.json["stages"]
    assert actions["limits"]["median"] == 0.1 and 0 < actions["median"] <= 0.1
    assert stages["passed"] and stages["stages"]["denoise"]["x_next"]["relative"] > 1e-4  # it did quantise


def test_scales_per_step_in_a_bf16_bundle_are_validated_against_the_float32_student(shipped, dataset, tmp_path):
    pytest.importorskip("modelopt", reason="needs edgewam[quant]")
    rules = [{"stage": "denoise", "layer": "ffn.*.up", "format": "fp8"}]
    plan = plan_file(tmp_path / "plan.json", rules, backend="eager", per_step=True)
    done = here("quantize", shipped / "student", dataset, tmp_path / "fp8", "--plan", plan, *QUICK).ok()
    assert f"Next: edgewam compile {tmp_path / 'fp8'} BUNDLE --backend eager\n" in done.err
    here("compile", tmp_path / "fp8", tmp_path / "b", "--backend", "eager", "--precision", "bf16", "--threads", 1).ok()
    config = read_manifest(tmp_path / "b").config
    assert config["precision"] == "fp8+bf16" and "scale_rows" in config["programs"]["constants"]
    done = here("validate", tmp_path / "b", shipped / "student", dataset, "--frames", 2, "--threads", 1, "--json")
    assert done.out, done.err
    found = done.json
    assert found["stages"]["passed"] and found["stages"]["stages"]["denoise"]["x_next"]["relative"] > 1e-4
    assert 0 < found["actions"]["median"] < BOUND


def test_a_bundle_with_wrong_scales_does_not_open(bundle, tmp_path):
    import shutil

    import onnx

    from edgewam.core.artifacts import write_artifact
    from edgewam.core.errors import GateError
    from edgewam.runtime.bundle import Bundle

    manifest = read_manifest(bundle)
    with write_artifact(tmp_path / "wrong", "bundle", config=manifest.config, parents=manifest.parents) as out:
        shutil.copytree(bundle, out, dirs_exist_ok=True)
        model = onnx.load(out / "stages/denoise.onnx")
        for tensor in model.graph.initializer:
            if tensor.name.endswith("down.weight_scale"):
                values = onnx.numpy_helper.to_array(tensor) * 3
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(model, out / "stages/denoise.onnx")
        (out / "manifest.json").unlink()
    with pytest.raises(GateError, match="Self-test failed"):
        Bundle.open(tmp_path / "wrong", threads=1)


def test_a_dry_run_prints_the_layers_and_writes_nothing(shipped, dataset, tmp_path):
    done = here("quantize", shipped / "student", dataset, tmp_path / "out", "--plan", "int8", "--dry-run", "--json").ok()
    formats = {(row["stage"], row["layer"]): row["format"] for row in done.json["layers"]}
    assert formats["denoise", "head"] == "none" and formats["denoise", "ffn.0.up"] == "int8"
    assert formats["text", "planner.project"] == formats["state", "key_values.project"] == "int8_dynamic"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("int7", "Named plans: int8, fp8, fp8_weights, int4_weights, auto"),
        ({"rules": [{"stage": "denois", "layer": "*", "format": "int8"}]}, "Nearest: denoise"),
        ({"rules": [{"stage": "denoise", "layer": "fnn.0.up", "format": "int8"}]}, "Nearest: ffn.0.up"),
        ({"rules": [{"stage": "denoise", "layer": "*", "format": "fp8"}]}, "would turn back into float32"),
        ({"backend": "tensort"}, "Unknown backend"),
        (
            {"backend": "inductor"},
            "the plan file's field 'backend': eager (int8, int8_dynamic, int8_weights, fp8, fp8_weights, int4_weights);",
        ),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_any_work(plan, message, shipped, dataset, tmp_path):
    argument = plan if isinstance(plan, str) else plan_file(tmp_path / "plan.json", **{"rules": RULES, **plan})
    done = here("quantize", shipped / "student", dataset, tmp_path / "out", "--plan", argument, *QUICK)
    assert done.code == 1 and message in done.err and "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("backend", "options"),
    [("onnxruntime", ""), ("eager", " --backend eager"), ("tensorrt", " --backend tensorrt --target NAME --precision bf16")],
)
def test_a_plan_names_the_options_that_compile_takes(backend, options):
    from edgewam.quantize.plan import PrecisionPlan

    assert PrecisionPlan("mine", backend, ()).compile_options == options


def test_compile_refuses_another_backend_and_names_the_one_of_the_plan():
    from edgewam.core import plugins
    from edgewam.core.errors import ContractError
    from edgewam.quantize.plan import PrecisionPlan, Rule

    plan = PrecisionPlan("fp8", "tensorrt", (Rule("*", "*", "fp8"),))
    with pytest.raises(ContractError, match="BUNDLE --backend tensorrt --target NAME --precision bf16; or quantise"):
        plan.require_backend(plugins.load("backend_build", "onnxruntime"), "onnxruntime")
    with pytest.raises(ContractError) as refused:
        plan.require_backend(plugins.load("backend_build", "inductor"), "inductor")
    assert "--backend tensorrt" in str(refused.value) and "edgewam quantize" not in str(refused.value), "it takes no plan at all"


def test_quantize_refuses_a_backend_and_lists_those_that_take_the_plan():
    from edgewam.core import plugins
    from edgewam.core.errors import ContractError
    from edgewam.quantize.plan import PrecisionPlan, Rule

    plan = PrecisionPlan("fp8", "inductor", (Rule("*", "*", "fp8"),), per_step=True)
    with pytest.raises(ContractError) as refused:
        plan.require_backend(plugins.load("backend_build", "inductor"))
    advice = str(refused.value).split("field 'backend': ")[1]
    assert "eager (" in advice and "tensorrt (" in advice and "onnxruntime" not in advice, "which computes in no fp8"


def test_a_quantised_policy_is_not_quantised_again(quantized, dataset, tmp_path):
    done = here("quantize", quantized[0], dataset, tmp_path / "out", *QUICK)
    assert done.code == 1 and "quantised already" in done.err

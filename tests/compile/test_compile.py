"""Compile: what a bundle holds, what is refused, and that a cut compile leaves the old bundle."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgewam.compile.backends import eager as eager_build
from edgewam.compile.compile import compile_bundle
from edgewam.compile.plan import plan_policy
from edgewam.compile.samples import random_inputs
from edgewam.core.artifacts import read_manifest
from edgewam.core.errors import GateError, PluginError
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.models import toy_three
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.pipeline import Pipeline
from tests.compile.toy import toy_plan


@pytest.fixture(scope="module", params=["eager", "onnxruntime"])
def compiled(request, tmp_path_factory):
    plan = toy_plan(request.param, prompts={"wave": {"text": np.ones((3, 8), np.float32)}})
    return plan, compile_bundle(plan, tmp_path_factory.mktemp("bundle") / request.param)


def test_a_bundle_runs_every_program_as_the_eager_reference(compiled):
    plan, path = compiled
    reference = Pipeline(plan.programs, plan.stages, {name: TorchEngine(stage) for name, stage in plan.stages.items()})
    bundle = Bundle.open(path, threads=1)
    for seed, (name, program) in enumerate(plan.programs.programs.items()):
        inputs = random_inputs(program.inputs, 40 + seed)
        expected, found = reference.run(name, inputs), bundle.pipeline.run(name, inputs)
        for output in expected:
            np.testing.assert_allclose(found[output], expected[output], rtol=0, atol=2e-5)


def test_the_manifest_holds_measured_error_per_stage_and_program(compiled):
    plan, path = compiled
    manifest = read_manifest(path, kind="bundle")
    stages = manifest.measured["stages"]["stages"]
    assert set(stages) == set(plan.stages)
    assert all(0 <= d["relative"] < 5e-5 and d["cosine"] > 0.999999 for outputs in stages.values() for d in outputs.values())
    assert set(manifest.measured["programs"]) == {"prompt", "act", "imagine"}
    assert manifest.config["num_action_steps"] == 4
    assert {"constants.safetensors", "prompts.safetensors", "golden.safetensors"} <= set(manifest.files)


def test_dry_run_counts_calls_without_computing():
    plan = toy_plan()
    described = plan.describe()
    assert described["stages"]["step"]["calls"] == {"act": 4, "imagine": 12}
    assert described["stages"]["context"]["calls"] == {"prompt": 1}
    assert described["weight_bytes"] == sum(stage.cost.weight_bytes for stage in plan.stages.values()) > 0
    assert plan.programs.programs["act"].num_calls("start") == 1


def test_an_unknown_backend_lists_what_there_is(tmp_path):
    with pytest.raises(PluginError, match="Available: eager, fused, inductor, onnxruntime"):
        compile_bundle(toy_plan("tensort"), tmp_path / "b")


def test_a_refused_stage_is_refused_before_anything_is_written(tmp_path):
    plan = toy_plan("onnxruntime")
    wide = {**plan.stages, "context": replace(plan.stages["context"], inputs=(TensorSpec("text", (3, 8), "float64"),))}
    with pytest.raises(PluginError, match="float64"):
        compile_bundle(replace(plan, stages=wide), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_export_is_caught_by_name_and_the_old_bundle_stays(tmp_path, monkeypatch):
    path = compile_bundle(toy_plan(), tmp_path / "bundle")
    before = read_manifest(path).digest
    right = eager_build.build

    def wrong(stage, directory, options):
        if stage.name != "step":
            return right(stage, directory)
        return right(replace(stage, function=lambda *inputs: tuple(1.01 * value for value in stage.function(*inputs))), directory)

    monkeypatch.setattr(eager_build, "build", wrong)
    with pytest.raises(GateError, match="Stage 'step' is the first that diverges"):
        compile_bundle(toy_plan(seed=1), path)
    assert read_manifest(path).digest == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_a_program_that_computes_nan_is_refused(tmp_path):
    plan = toy_plan()
    function = lambda text: (torch.log(-text.abs()).expand(2, 3, 8).repeat(1, 1, 2),)  # noqa: E731
    broken = {**plan.stages, "context": replace(plan.stages["context"], function=function)}
    with pytest.raises(GateError, match="context"):
        compile_bundle(replace(plan, stages=broken), tmp_path / "b")
    assert not (tmp_path / "b").exists()


KILLED = """
import sys, time
from edgewam.compile.backends import eager
from edgewam.compile.compile import compile_bundle
from tests.compile.toy import toy_plan
right = eager.build
def slow(stage, directory, options):
    record = right(stage, directory)
    print("built", flush=True)
    time.sleep(60)
    return record
eager.build = slow
compile_bundle(toy_plan(seed=1), sys.argv[1])
"""


def test_a_killed_compile_leaves_the_old_bundle_and_the_next_one_succeeds(tmp_path):
    path = compile_bundle(toy_plan(), tmp_path / "bundle")
    before = read_manifest(path).digest
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": "."}
    ) as child:
        assert child.stdout.readline() == b"built\n"
        child.send_signal(signal.SIGKILL)
        child.wait(10)
    assert read_manifest(path).digest == before
    compile_bundle(toy_plan(seed=1), path)
    assert read_manifest(path).digest != before
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]
    Bundle.open(path, threads=1)


def test_stages_survive_the_manifest(compiled):
    plan, path = compiled
    entries = read_manifest(path).config["stages"]
    assert [Stage.from_json(entry["stage"]) for entry in entries] == [stage.without_function() for stage in plan.stages.values()]


def test_a_policy_plan_takes_everything_from_the_family():
    torch.manual_seed(0)
    model = toy_three.build()
    plan = plan_policy(
        "toy_three", model, "eager", num_action_steps=3, prompts={"wave": np.ones((3, 8))}, host={"robot": "toy"},
        parents={"policy": "abc"}, config={"trained_as": "student"},
    )  # fmt: skip
    assert list(plan.stages) == ["context", "start", "step"] and plan.policy is None
    assert plan.programs.programs["act"].loop.num_rows == 3
    assert plan.prompts["wave"]["text"].dtype == np.float32
    assert plan.host == {**toy_three.host_config(model.config), "robot": "toy"}
    assert plan.config == {"num_action_steps": 3, "precision": "fp32", "trained_as": "student"}
    with pytest.raises(PluginError, match=r"Unknown family 'toy'\. Available: .*toy_three"):
        plan_policy("toy", model, "eager", num_action_steps=3, prompts={})

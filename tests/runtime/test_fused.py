"""The backend `fused`: a bundle whose kernels run interpreted, and what it refuses to open."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgewam.compile.backends import fused as build
from edgewam.compile.build_options import BuildOptions
from edgewam.compile.compile import compile_bundle
from edgewam.compile.plan import plan_policy
from edgewam.core.artifacts import read_manifest
from edgewam.core.errors import ArtifactError, PluginError
from edgewam.models.text import SmallTextEncoder
from edgewam.quantize.layers import Scales, find_layers, quantized, with_layers
from edgewam.runtime.backends import fused
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.engine import EngineOptions, run_engine
from tests.compile.lowered import drawn, eagerly, small_model, stage_arguments, stages_of

pytestmark = pytest.mark.skipif(not fused.supports().ok, reason=fused.supports().reason)
PROMPT = "pass the red cube"
OPTIONS = EngineOptions(threads=1)
PROGRAM = 1e-4  # of the maximum: what `compile` allows a float32 program on the processor; 1e-6 was seen


@pytest.fixture(scope="module")
def denoise(tmp_path_factory):
    """(stage, directory, record) of a denoise step."""
    stage = stages_of(small_model("aha_wam", num_layers=1))["denoise"]
    directory = tmp_path_factory.mktemp("denoise")
    return stage, directory, build.build(stage, directory)


@pytest.fixture
def copied(denoise, tmp_path):
    stage, directory, record = denoise
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return stage, tmp_path, record


def test_a_bundle_proves_its_kernels_against_eager_and_opens_again(tmp_path):
    model = small_model("fast_wam")
    text = SmallTextEncoder(model.config.text_dim, model.config.text_len).encode(PROMPT)
    plan = plan_policy(
        "fast_wam", model, "fused", num_action_steps=1, prompts={PROMPT: text}, threads=1, rewrites=None,
        stage_arguments=stage_arguments(),
    )  # fmt: skip
    manifest = read_manifest(compile_bundle(replace(plan, policy=None), tmp_path / "bundle"))
    records = {entry["stage"]["name"]: entry["record"] for entry in manifest.config["stages"]}
    assert {name for name, record in records.items() if "recipe" in record} == {"planner", "state", "denoise"}
    assert records["denoise"]["kernels"] == {"linear": 14, "chunk_attention": 2, "text_attention": 2}
    assert records["denoise"]["choices"]["card"] == "interpreter" and "convolutions" in records["image_encoder"]["why"]
    assert manifest.measured["programs"]["act"]["relative"] < PROGRAM
    bundle = Bundle.open(tmp_path / "bundle", threads=1)  # the golden vectors ran again
    assert bundle.backend == "fused" and bundle.digest == manifest.digest


def test_a_wanted_output_is_all_that_is_written_and_binding_writes_nothing(denoise):
    stage, directory, record = denoise
    engine, inputs = fused.load(stage.without_function(), directory, record, OPTIONS), drawn(stage)
    out = {"x_next": torch.full(stage.outputs[0].shape, 7.0)}
    call = engine.bind(inputs, out)
    assert bool((out["x_next"] == 7).all())
    engine.bind(inputs, {})()  # nobody wants anything
    assert bool((out["x_next"] == 7).all())
    call()
    expected = eagerly(stage, inputs)["x_next"]
    assert float((out["x_next"] - expected).abs().max() / expected.abs().max()) < build.TOLERANCE


def test_two_bindings_of_one_engine_do_not_share_workspaces(denoise):
    stage, directory, record = denoise
    engine = fused.load(stage.without_function(), directory, record, OPTIONS)
    inputs = [drawn(stage, seed) for seed in (1, 2)]
    outputs = [{"x_next": torch.zeros(stage.outputs[0].shape)} for _ in inputs]
    calls = [engine.bind(given, out) for given, out in zip(inputs, outputs, strict=True)]
    for call in calls:
        call()
    for given, out in zip(inputs, outputs, strict=True):
        alone = run_engine(stage, engine, {n: t.numpy() for n, t in given.items()})
        np.testing.assert_array_equal(out["x_next"].numpy(), alone["x_next"])


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_truncated_file_is_refused_with_its_name(copied, suffix):
    stage, directory, record = copied
    file = directory / f"denoise{suffix}"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=f"denoise\\{suffix}.*compile it again"):
        fused.load(stage, directory, record, OPTIONS)


def test_a_recipe_of_a_tensor_that_is_nowhere_is_refused(copied):
    stage, directory, record = copied
    data = json.loads((directory / "denoise.json").read_text())
    data["calls"][0]["operands"]["x"] = "nowhere"
    (directory / "denoise.json").write_text(json.dumps(data))
    engine = fused.load(stage, directory, record, OPTIONS)
    with pytest.raises(Exception, match=r"'nowhere'.*Compile the bundle again"):
        engine.bind(drawn(stage), {})


def test_kernels_that_were_tuned_on_another_card_are_refused(denoise):
    stage, directory, record = denoise
    foreign = record | {"choices": record["choices"] | {"card": "NVIDIA H100 80GB HBM3", "sm": 90}}
    with pytest.raises(ArtifactError, match=r"H100.*Compile the policy again"):
        fused.load(stage, directory, foreign, OPTIONS)


def test_what_has_no_kernel_is_listed_with_its_reason(denoise):
    _, _, record = denoise
    assert sum(record["kernels"].values()) == 10
    for index, op, why in record["unsupported"]:
        assert 0 <= index < 10 and op in record["kernels"] and why


def test_a_target_is_refused_with_the_way_there_is():
    with pytest.raises(PluginError, match=r"tunes its kernels on the card.*--device cuda"):
        build.check(BuildOptions(target="rtx-5090"))
    assert "interpreter" in build.remark(BuildOptions()) and not build.remark(BuildOptions(device="cuda"))


def test_a_format_that_is_measured_in_every_call_is_refused():
    stages = stages_of(small_model("aha_wam", num_layers=1))
    key, layer = next((k, m) for k, m in find_layers(stages).items() if k == ("denoise", "qkv.0.project"))
    support = build.supports(with_layers(stages, {key: quantized(layer, Scales("int8_dynamic"))})["denoise"])
    assert not support.ok and "int8_dynamic" in support.reason and "--backend fused" in support.reason
    assert not build.supports(replace(stages["denoise"], function=None)).ok

"""The artifact "quantized": what is written comes back without modelopt, and scales never meet another checkpoint."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgewam.cli._shipped import SMALL
from edgewam.core.artifacts import read_manifest, write_artifact
from edgewam.core.errors import ArtifactError
from edgewam.core.program import Call, Loop, Program, Programs
from edgewam.quantize.artifact import WEIGHTS, read_quantized, write_quantized
from edgewam.quantize.layers import Scales, find_layers, quantized, with_layers
from edgewam.quantize.plan import PrecisionPlan, Rule
from tests.quantize.toy import toy_recording, toy_stages

PLAN = PrecisionPlan("mine", "onnxruntime", (Rule("net", "*", "int8"),))
IMAGE, ROWS = toy_recording(1).calls["net"][0]


def policy(directory, text="weights"):
    with write_artifact(directory, "student", config={}) as out:
        (out / "model.txt").write_text(text)
    return directory


def made(stages):
    layers = find_layers(stages)
    smooth = torch.linspace(0.5, 2.0, 64)
    scales = {
        ("net", "conv"): Scales("int8", torch.tensor(0.02), torch.tensor(0.03)),
        ("net", "up"): Scales("int8", torch.tensor(0.1), smooth=smooth),
        ("net", "down"): Scales("fp8", torch.tensor(0.01)),
    }
    return {name: quantized(layers[name], s) for name, s in scales.items()}


@pytest.fixture
def written(tmp_path):
    stages = toy_stages()
    layers = made(stages)
    place = policy(tmp_path / "student")
    write_quantized(tmp_path / "q", layers, PLAN, place, read_manifest(place).digest, {"plan": "mine"}, {"layers": []})
    return tmp_path, stages, layers


def test_what_is_read_computes_what_was_written(written):
    directory, stages, layers = written
    expected = with_layers(stages, layers)["net"].function(IMAGE, ROWS)
    found = read_quantized(directory / "q").apply(toy_stages())["net"].function(IMAGE, ROWS)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_weights_are_stored_as_bytes(written):
    directory, _, layers = written
    weights = sum(layer.weight.numel() for layer in layers.values())
    assert weights < (directory / "q" / WEIGHTS).stat().st_size < 4 * weights / 2.5


def test_the_manifest_names_the_policy_and_the_plan_comes_back(written):
    directory, _, _ = written
    artifact = read_quantized(directory / "q")
    assert artifact.manifest.kind == "quantized"
    assert artifact.manifest.parents == {"policy": read_manifest(directory / "student").digest}
    assert artifact.plan == PLAN and artifact.precision == "fp8+int8"


def test_reading_needs_no_modelopt(written):
    directory, _, _ = written
    code = (
        "import sys; sys.modules['modelopt'] = None\n"
        "from edgewam.quantize.artifact import read_quantized; from tests.quantize.toy import toy_stages\n"
        f"read_quantized({str(directory / 'q')!r}).apply(toy_stages())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_scales_of_another_checkpoint_are_refused(written):
    directory, _, _ = written
    policy(directory / "student", "other weights")
    with pytest.raises(ArtifactError, match="scales of another checkpoint"):
        read_quantized(directory / "q")


def test_a_missing_policy_is_named(written):
    directory, _, _ = written
    (directory / "student").rename(directory / "elsewhere")
    with pytest.raises(ArtifactError, match="which is not there"):
        read_quantized(directory / "q")
    assert read_quantized(directory / "q", directory / "elsewhere").policy == directory / "elsewhere"


def test_a_changed_file_is_refused(written):
    directory, _, _ = written
    file = directory / "q" / WEIGHTS
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="does not match its digest"):
        read_quantized(directory / "q")


def test_scales_of_another_version_are_refused(written):
    directory, _, _ = written
    stages = toy_stages()
    place = directory / "student"
    write_quantized(directory / "q", made(stages), PLAN, place, read_manifest(place).digest, {"scales_version": 7}, {})
    with pytest.raises(ArtifactError, match="scales of version 7"):
        read_quantized(directory / "q")


def test_scales_of_the_first_version_still_load(written):
    directory, _, _ = written
    stages = toy_stages()
    layers, place = made(stages), directory / "student"
    write_quantized(directory / "q", layers, PLAN, place, read_manifest(place).digest, {"scales_version": 1}, {})
    found = read_quantized(directory / "q").apply(toy_stages())["net"].function(IMAGE, ROWS)
    for a, b in zip(found, with_layers(stages, layers)["net"].function(IMAGE, ROWS), strict=True):
        assert torch.equal(a, b)


def test_the_shipped_artifact_still_loads():
    artifact = read_quantized(SMALL / "quantized")
    assert artifact.manifest.config["scales_version"] == 1 and not artifact.plan.per_step


def test_scales_per_step_come_back_as_rows_of_a_table(written):
    directory, _, _ = written
    stages, place = toy_stages(), directory / "student"
    scales = torch.tensor([0.1, 0.4])
    layers = {("net", "up"): quantized(find_layers(stages)["net", "up"], Scales("fp8", scales))}
    plan = replace(PLAN, per_step=True, backend="eager")
    write_quantized(directory / "q", layers, plan, place, read_manifest(place).digest, {}, {})
    artifact = read_quantized(directory / "q")
    assert artifact.plan.per_step and read_manifest(directory / "q").config["scales_version"] == 2
    stage = artifact.apply(stages)["net"]
    for scale in scales:
        static = {("net", "up"): quantized(find_layers(stages)["net", "up"], Scales("fp8", scale))}
        expected = with_layers(stages, static)["net"].function(IMAGE, ROWS)[0]
        torch.testing.assert_close(stage.function(IMAGE, ROWS, scale[None])[0], expected, rtol=1e-4, atol=1e-4)
    loop = Loop((Call("net", {"image": "image", "rows": "row"}, {"out": "out", "map": "map"}),), {"row": "rows"}, 2)
    program = Program("act", (stage.inputs[0],), ("out",), loop=loop)
    programs = Programs((), {"act": program}, {"rows": np.stack([ROWS.numpy(), ROWS.numpy()])})
    declared = artifact.apply_programs(programs, {"net": stage})
    declared.check({"net": stage})
    np.testing.assert_array_equal(declared.constants["scale_rows"], scales.numpy()[:, None])


def test_layers_of_another_shape_are_refused(written):
    directory, _, _ = written
    stages = toy_stages()
    stages["net"].function.up = torch.nn.Linear(64, 80)
    with pytest.raises(ArtifactError, match=r"net\.up, which is \[80, 64\]"):
        read_quantized(directory / "q").apply(stages)


def test_the_plan_is_readable_json(written):
    directory, _, _ = written
    assert json.loads((directory / "q" / "plan.json").read_text())["rules"][0]["format"] == "int8"

"""A bundle of a GPU from compile to refusal, on a device in NumPy: graphs, warnings, and what it may not run on."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

from edgewam.compile.build_options import BuildOptions
from edgewam.compile.compile import compile_bundle
from edgewam.compile.plan import plan_policy
from edgewam.compile.samples import random_inputs
from edgewam.core.artifacts import read_manifest
from edgewam.core.errors import ArtifactError, EdgewamError, GateError, PluginError
from edgewam.profiles import contract
from edgewam.profiles.machine import read_machine
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.engine import Support
from edgewam.runtime.tensors import load_tensors, save_tensors
from tests.compile.toy import toy_plan
from tests.runtime import fake_gpu_backend as gpu
from tests.runtime.tiny_aha_wam import PROMPT, tiny_parts

BACKEND = "tests.runtime.fake_gpu_backend"


@pytest.fixture(autouse=True)
def the_same_device():
    yield
    gpu.device_facts.update(gpu.FACTS)
    gpu.settings.clear()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return compile_bundle(toy_plan(BACKEND), tmp_path_factory.mktemp("gpu") / "toy")


def test_the_manifest_says_which_device_it_was_made_on(path):
    assert read_manifest(path).config["device"] == gpu.FACTS


def test_opening_captures_every_program_and_graphs_answer_as_the_eager_bundle(path, tmp_path):
    bundle = Bundle.open(path, threads=1)
    assert set(bundle.pipeline.captured) == set(bundle.pipeline.programs.programs)
    eager = Bundle.open(compile_bundle(toy_plan("eager"), tmp_path / "eager"), threads=1)
    for seed in (1, 2):
        for name, program in eager.pipeline.programs.programs.items():
            inputs = random_inputs(program.inputs, seed)
            found, expected = bundle.pipeline.run(name, inputs), eager.pipeline.run(name, inputs)
            for output in expected:
                np.testing.assert_allclose(found[output], expected[output], rtol=0, atol=1e-5)  # other memory, other alignment
    assert bundle.pipeline.memory.num_launches > 0


def test_a_failed_capture_warns_with_the_reason_and_the_bundle_still_answers(path):
    gpu.settings["forbid"] = True
    with pytest.warns(RuntimeWarning, match="without a CUDA graph.*not permitted when stream is capturing"):
        bundle = Bundle.open(path, threads=1)
    assert bundle.pipeline.captured == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bundle.pipeline.run("prompt", random_inputs(bundle.pipeline.programs.programs["prompt"].inputs, 1))


@pytest.mark.parametrize(("fact", "value"), [("sm", "sm_89"), ("runtime", "fake 1.1"), ("driver", "570.0")])
def test_another_device_version_or_older_driver_is_refused_before_any_engine_is_loaded(path, fact, value, monkeypatch):
    gpu.device_facts[fact] = value
    monkeypatch.setattr(gpu, "load", lambda *arguments: pytest.fail("an engine was loaded"))
    with pytest.raises(ArtifactError, match=f"edgewam compile POLICY BUNDLE --backend {BACKEND} --device cuda --steps 4"):
        Bundle.open(path, threads=1)


def test_a_bundle_for_a_device_that_is_not_here_is_built_and_proves_itself_there(tmp_path, monkeypatch):
    plan = replace(toy_plan(BACKEND), build_options=BuildOptions(target="rtx-4090"))  # the device here is sm_120
    monkeypatch.setattr(gpu, "load", lambda *arguments: pytest.fail("an engine of another card was opened"))
    path = compile_bundle(plan, tmp_path / "toy")
    manifest = read_manifest(path)
    device = {"target": "rtx-4090", "name": "NVIDIA GeForce RTX 4090", "sm": "sm_89", "runtime": "fake 1.0", "driver": "550.1"}
    assert manifest.config["device"] == device
    assert "programs" not in manifest.measured and "stages" not in manifest.measured  # nothing ran, so nothing is claimed
    with pytest.raises(ArtifactError, match=r"--target rtx-5090"):  # the one that is here, sm_120, not the bundle's
        Bundle.open(path, threads=1)
    monkeypatch.undo()
    gpu.device_facts.update(sm="sm_89")
    assert Bundle.open(path, threads=1).pipeline.captured
    constants = path / "constants.safetensors"
    tensors = load_tensors(constants)
    save_tensors(constants, {name: value + 1 for name, value in tensors.items()})
    with pytest.raises(GateError, match="must not drive a robot"):
        Bundle.open(path, threads=1, verify=False)


def test_without_a_target_a_backend_that_cannot_run_here_is_refused(tmp_path, monkeypatch):
    no_driver = Support(False, "no NVIDIA driver is loaded")
    monkeypatch.setattr(gpu, "supports", lambda stage=None: Support(True) if stage else no_driver)
    with pytest.raises(PluginError, match="no NVIDIA driver is loaded"):
        compile_bundle(toy_plan(BACKEND), tmp_path / "toy")
    with pytest.raises(EdgewamError, match="Unknown device 'rtx-5099'"):
        compile_bundle(replace(toy_plan(BACKEND), build_options=BuildOptions(target="rtx-5099")), tmp_path / "toy")


def test_a_bundle_made_on_a_gpu_says_how_fast_it_was_there_under_its_contract(tmp_path, monkeypatch):
    machine = replace(read_machine(), gpu={"name": "NVIDIA Fake", "driver": "580.1", "sm_clock": "2000 MHz"})
    monkeypatch.setattr(contract, "read_machine", lambda: machine)
    model, encoder, state, action, text = tiny_parts()
    plan = plan_policy(
        "aha_wam", model, BACKEND, num_action_steps=2, prompts={PROMPT: text}, threads=1, host={"offset_trained": True},
        stage_arguments={"image_encoder": encoder, "state_normalizer": state, "action_normalizer": action},
    )  # fmt: skip
    measured = read_manifest(compile_bundle(plan, tmp_path / "tiny")).measured
    assert measured["graphs"] == {"prompt": "bitwise", "plan": "bitwise", "act": "bitwise"}
    chunk = measured["timing"]["L_chunk"]
    assert 0 < chunk["p50_ms"] <= chunk["p99_ms"] and chunk["n"] == 100
    found = chunk["contract"]
    assert (found["device"], found["driver"], found["engine"]) == ("NVIDIA Fake", "580.1", f"{BACKEND}+cuda_graph")
    assert found["steps"] == 2 and found["precision"] == "fp32" and "denoise" in found["stages"]
    assert measured["timing"]["L_compose"]["contract"]["engine"] == BACKEND  # the host alone

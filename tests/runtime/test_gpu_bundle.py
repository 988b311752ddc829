"""A bundle of a GPU from compile to refusal, on a device in NumPy: graphs, warnings, and what it may not run on."""

import warnings

import numpy as np
import pytest

from edgewam.compile.compile import compile_bundle
from edgewam.compile.samples import random_inputs
from edgewam.core.artifacts import read_manifest
from edgewam.core.errors import ArtifactError
from edgewam.runtime.bundle import Bundle
from tests.compile.toy import toy_plan
from tests.runtime import fake_gpu_backend as gpu

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
    with pytest.raises(ArtifactError, match=f"edgewam compile POLICY BUNDLE --backend {BACKEND} --device cuda"):
        Bundle.open(path, threads=1)

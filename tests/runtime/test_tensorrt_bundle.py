"""A TensorRT bundle from its directory to its answers on the fake GPU: no torch, graphs, two programs at a time, refusals."""

import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from edgewam.core.artifacts import write_artifact
from edgewam.core.errors import ArtifactError, GateError
from edgewam.core.program import Call, Loop, Program, Programs, State
from edgewam.core.stage import Cost, Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime import tensorrt_api
from edgewam.runtime.bundle import CONSTANTS, GOLDEN, STAGES, Bundle
from edgewam.runtime.prompts import KIND, PROMPTS, save_prompts
from edgewam.runtime.selftest import GoldenCall, save_golden
from edgewam.runtime.tensors import save_tensors
from tests.runtime.fake_cuda import FakeCudart
from tests.runtime.fake_tensorrt import VERSION, engine_file, module_over

STEP = Stage(
    "step", (TensorSpec("x", (3,)), TensorSpec("rate", ())), (TensorSpec("y", (3,)), TensorSpec("twice", (3,))), Cost(0, 0, 1, 0)
)
RATES = np.array([2, 3, 5], np.float32)
FRAME, GAIN = np.array([1, 0, -1], np.float32), np.array(2, np.float32)
MADE_FOR = {
    "name": "NVIDIA GeForce RTX 5090",
    "sm": "sm_120",
    "runtime": f"tensorrt_rtx {VERSION}",
    "driver": "",
    "target": "rtx-5090",
}
REBUILD = "edgewam compile POLICY BUNDLE --backend tensorrt --target rtx-5090"


def step(x, rate):
    return x * rate + 1


def answer(context):
    """What `act` gives for a context."""
    x = step(context, np.float32(1))
    for rate in RATES:
        x = step(x, rate)
    return x


def programs():
    """`plan` writes the context, `act` makes three steps from it."""
    refresh = Call("step", {"x": "frame", "rate": "gain"}, {"y": "context"})
    begin, loop = Call("step", {"x": "context", "rate": "one"}, {"y": "x"}), Call("step", {"x": "x", "rate": "rate"}, {"y": "x"})
    return Programs(
        (State(TensorSpec("context", (3,)), "plan"),),
        {
            "plan": Program("plan", (TensorSpec("frame", (3,)), TensorSpec("gain", ())), (), (refresh,)),
            "act": Program("act", (), ("x",), (begin,), Loop((loop,), {"rate": "rates"}, 3)),
        },
        {"one": np.array(1, np.float32), "rates": RATES},
    )


def write_bundle(path, expected=None, version=VERSION):
    """A bundle as `compile` writes it, of one fake engine; `expected` replaces the golden answer."""
    context = step(FRAME, GAIN)
    golden = [
        GoldenCall("plan", {"frame": FRAME, "gain": GAIN}, {"state:context": context}, 1e-6),
        GoldenCall("act", {}, {"x": answer(context) if expected is None else expected}, 1e-6),
    ]
    record = {"file": "step.engine", "target": "rtx-5090", "sm": "sm_120", "library": "tensorrt_rtx", "version": version}
    config = {
        "family": "toy", "backend": "tensorrt", "policy": None, "host": {}, "programs": programs().to_json(),
        "stages": [{"stage": STEP.to_json(), "record": record}], "golden": [], "device": MADE_FOR,
    }  # fmt: skip
    with write_artifact(path, KIND, config=config) as directory:
        (directory / STAGES).mkdir()
        tensors = ([("x", [3], "FLOAT"), ("rate", [], "FLOAT")], [("y", [3], "FLOAT"), ("twice", [3], "FLOAT")])
        (directory / STAGES / "step.engine").write_bytes(engine_file("step", *tensors))
        save_tensors(directory / CONSTANTS, programs().constants)
        save_prompts(directory / PROMPTS, {})
        config["golden"] += save_golden(directory / GOLDEN, golden)
    return path


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCudart()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module_over(fake))
    tensorrt_api.load.cache_clear()
    yield fake
    tensorrt_api.load.cache_clear()


@pytest.fixture
def path(tmp_path):
    return write_bundle(tmp_path / "bundle")


def test_every_program_becomes_a_graph_and_gives_the_golden_answer(cuda, path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bundle = Bundle.open(path, threads=1)
    assert set(bundle.pipeline.captured) == {"plan", "act"}
    bundle.pipeline.run("plan", {"frame": 2 * FRAME, "gain": GAIN})
    np.testing.assert_array_equal(bundle.pipeline.run("act", {})["x"], answer(step(2 * FRAME, GAIN)))


def test_a_refresh_beside_the_chunks_shows_when_it_is_finished(cuda, path):
    pipeline = Bundle.open(path, threads=1).pipeline
    pipeline.run("plan", {"frame": FRAME, "gain": GAIN})
    pipeline.start("plan", {"frame": 3 * FRAME, "gain": GAIN})
    np.testing.assert_array_equal(pipeline.run("act", {})["x"], answer(step(FRAME, GAIN)))
    pipeline.finish("plan")
    np.testing.assert_array_equal(pipeline.run("act", {})["x"], answer(step(3 * FRAME, GAIN)))


def test_a_failed_capture_warns_and_the_bundle_still_answers(cuda, path):
    cuda.failures["cudaGraphInstantiate"] = list(cuda.cudaError_t)[-3]
    with pytest.warns(RuntimeWarning, match="without a CUDA graph.*making a graph executable"):
        bundle = Bundle.open(path, threads=1)
    assert bundle.pipeline.captured == ()
    bundle.pipeline.run("plan", {"frame": FRAME, "gain": GAIN})
    np.testing.assert_array_equal(bundle.pipeline.run("act", {})["x"], answer(step(FRAME, GAIN)))


def test_engines_that_give_another_answer_do_not_drive_a_robot(cuda, tmp_path):
    with pytest.raises(GateError, match="Self-test failed: golden call 1 of program 'act'"):
        Bundle.open(write_bundle(tmp_path / "bundle", expected=np.zeros(3, np.float32)), threads=1)


def test_another_card_is_refused_with_the_command_that_rebuilds(cuda, path, monkeypatch):
    monkeypatch.setattr(cuda, "cudaGetDeviceProperties", lambda device: (0, SimpleNamespace(name=b"RTX 4090", major=8, minor=9)))
    with pytest.raises(ArtifactError, match="made for NVIDIA GeForce RTX 5090 with sm 'sm_120', and this is RTX 4090") as caught:
        Bundle.open(path, threads=1)
    assert REBUILD.replace("rtx-5090", "rtx-4090") in str(caught.value)


def test_another_version_of_the_library_is_refused(cuda, path, monkeypatch):
    monkeypatch.setattr(sys.modules["tensorrt_rtx"], "__version__", "1.8.0.1")
    with pytest.raises(ArtifactError, match=f"with runtime 'tensorrt_rtx {VERSION}'.*'tensorrt_rtx 1.8.0.1'"):
        Bundle.open(path, threads=1)


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_engine_is_refused_by_name(cuda, path, verify):
    os.truncate(path / STAGES / "step.engine", 40)
    with pytest.raises(ArtifactError, match=r"step\.engine'.*(does not match its digest|cannot open|magic tag)"):
        Bundle.open(path, threads=1, verify=verify)


WITHOUT_TORCH = """
import sys
for name in ("torch", "onnx", "onnxruntime", "onnxscript", "ml_dtypes"): sys.modules[name] = None
from tests.runtime import test_tensorrt_bundle as here
fake = here.FakeCudart()
sys.modules["cuda.bindings.runtime"], sys.modules["tensorrt_rtx"] = fake, here.module_over(fake)
pipeline = here.Bundle.open(sys.argv[1], threads=1).pipeline
pipeline.run("plan", {"frame": here.FRAME, "gain": here.GAIN})
print(pipeline.run("act", {})["x"].tolist(), sorted(pipeline.captured))
"""


def test_a_bundle_runs_without_torch_and_onnx(path):
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, path], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == f"{answer(step(FRAME, GAIN)).tolist()} ['act', 'plan']", done.stderr

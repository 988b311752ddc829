"""Bundles: what is refused when opened, prompts, and that an ONNX Runtime bundle needs no torch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgewam.compile.compile import compile_bundle
from edgewam.core import artifacts
from edgewam.core.errors import ArtifactError, ContractError, EdgewamError, GateError, PluginError
from edgewam.runtime.backends import onnxruntime as onnxruntime_run
from edgewam.runtime.bundle import CONSTANTS, GOLDEN, Bundle
from edgewam.runtime.engine import Support
from edgewam.runtime.tensors import load_tensors, save_tensors
from tests.compile.toy import toy_plan

PROMPTS = {"wave": {"text": np.ones((3, 8), np.float32)}, "point at a/the cube": {"text": np.zeros((3, 8), np.float32)}}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    return compile_bundle(toy_plan("onnxruntime", prompts=PROMPTS), tmp_path_factory.mktemp("shipped") / "toy")


@pytest.fixture
def path(shipped, tmp_path):
    return Path(shutil.copytree(shipped, tmp_path / "toy"))


def resign(path, **config):
    """Rewrite the manifest as the writer would after a change of files or configuration: digests fit, contents do not."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["config"] |= config
    manifest["files"] = {name: artifacts.file_digest(path / name) for name in manifest["files"]}
    manifest["digest"] = artifacts._digest(manifest["kind"], manifest["config"], manifest["parents"], manifest["files"])
    artifacts.write_json(path / "manifest.json", manifest)


def test_opening_runs_and_leaves_zero_state(path):
    bundle = Bundle.open(path, threads=1)
    assert not bundle.pipeline.state("context").any()
    bundle.pipeline.run("prompt", bundle.prompt("wave"))
    assert bundle.pipeline.state("context").any()
    assert bundle.digest and bundle.backend == "onnxruntime" and bundle.options.threads == 1


def test_an_unknown_prompt_names_the_command_that_adds_one(path):
    bundle = Bundle.open(path, threads=1)
    with pytest.raises(EdgewamError, match=r"'wave'.*edgewam prompt add .*toy \"dance\"") as caught:
        bundle.prompt("dance")
    assert "point at a/the cube" in str(caught.value)


@pytest.mark.parametrize("name", ["stages/step.onnx", CONSTANTS, GOLDEN, "prompts.safetensors"])
def test_a_truncated_file_is_refused_by_name(path, name):
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[:-7])
    with pytest.raises(ArtifactError, match=Path(name).name):
        Bundle.open(path)


@pytest.mark.parametrize("name", ["stages/step.onnx", CONSTANTS])
def test_a_truncated_file_with_a_fitting_digest_is_refused_too(path, name):
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: len(data) // 2])
    resign(path)
    with pytest.raises(ArtifactError, match=Path(name).name):
        Bundle.open(path)


def test_a_missing_file_is_refused(path):
    (path / "stages" / "start.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"lacks its file 'stages/start\.onnx'"):
        Bundle.open(path)


def test_an_edited_manifest_is_refused(path):
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"num_action_steps": 4', '"num_action_steps": 5'))
    with pytest.raises(ArtifactError, match="edited"):
        Bundle.open(path)


def test_another_kind_of_artifact_is_refused(tmp_path):
    with artifacts.write_artifact(tmp_path / "weights", "checkpoint", config={}):
        pass
    with pytest.raises(ArtifactError, match="is a checkpoint, but a bundle is needed"):
        Bundle.open(tmp_path / "weights")


def test_results_that_miss_the_golden_vectors_refuse_to_run(path):
    golden = load_tensors(path / GOLDEN)
    name = next(name for name in golden if name.endswith("/out/action_x"))
    golden[name] = golden[name] * np.float32(1.001)
    save_tensors(path / GOLDEN, golden)
    resign(path)
    with pytest.raises(GateError, match=r"'action_x' off by .* must not drive a robot"):
        Bundle.open(path, threads=1)


def test_a_changed_constant_refuses_to_run(path):
    constants = load_tensors(path / CONSTANTS)
    constants["solver_rows"][1] *= np.float32(1.01)
    save_tensors(path / CONSTANTS, constants)
    resign(path)
    with pytest.raises(GateError, match="Self-test failed"):
        Bundle.open(path, threads=1)


def test_a_constant_that_is_missing_is_refused(path):
    save_tensors(path / CONSTANTS, {})
    resign(path)
    with pytest.raises(ContractError, match="solver_rows"):
        Bundle.open(path, threads=1)


def test_a_bundle_without_golden_vectors_is_refused(path):
    resign(path, golden=[])
    with pytest.raises(ArtifactError, match="cannot test itself"):
        Bundle.open(path, threads=1)


def test_a_backend_that_cannot_run_here_says_why(path, monkeypatch):
    monkeypatch.setattr(onnxruntime_run, "supports", lambda: Support(False, "no wheels for this processor"))
    with pytest.raises(PluginError, match="no wheels for this processor"):
        Bundle.open(path)
    resign(path, backend="abacus")
    with pytest.raises(PluginError, match=r"Unknown backend 'abacus'\. Available: eager, fused, inductor, onnxruntime"):
        Bundle.open(path)


def test_a_bundle_of_another_version_is_refused(path):
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["config"]["host"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    resign(path)
    with pytest.raises(ArtifactError, match=r"lacks host: another version wrote it"):
        Bundle.open(path)


def test_a_bundle_without_policy_says_so(path):
    with pytest.raises(ArtifactError, match="names no policy"):
        Bundle.open(path, threads=1).open_policy()


WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "onnxscript", "mujoco", "pyarrow", "av"):
            raise ImportError(f"{name} must not be imported on the robot")
sys.meta_path.insert(0, Refuse())
import numpy as np
from edgewam.runtime.bundle import Bundle
bundle = Bundle.open(sys.argv[1], threads=1)
bundle.pipeline.run("prompt", bundle.prompt("wave"))
program = bundle.pipeline.programs.programs["act"]
result = bundle.pipeline.run("act", {s.name: np.ones(s.shape, s.dtype) for s in program.inputs})
assert not any(name.split(".")[0] == "torch" for name in sys.modules)
print(float(result["action_x"].sum()))
"""


def test_an_onnxruntime_bundle_runs_where_torch_cannot_be_imported(path):
    bundle = Bundle.open(path, threads=1)
    bundle.pipeline.run("prompt", bundle.prompt("wave"))
    inputs = {s.name: np.ones(s.shape, s.dtype) for s in bundle.pipeline.programs.programs["act"].inputs}
    expected = float(bundle.pipeline.run("act", inputs)["action_x"].sum())
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(expected, abs=1e-5)


WITHOUT_MODELS = """
import sys
from edgewam.runtime.bundle import Bundle
bundle = Bundle.open(sys.argv[1], threads=1)
bundle.pipeline.run("prompt", bundle.prompt("wave"))
assert "torch" in sys.modules and not any(name.startswith(("edgewam.models", "edgewam.compile")) for name in sys.modules)
"""


def test_an_eager_bundle_runs_without_the_model_code(tmp_path):
    path = compile_bundle(toy_plan("eager", prompts=PROMPTS), tmp_path / "toy")
    done = subprocess.run([sys.executable, "-c", WITHOUT_MODELS, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.network
def test_an_onnxruntime_bundle_runs_in_a_venv_without_torch(path, tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    packages = ["numpy", "pillow", "typer", "rich", "onnxruntime", "safetensors"]
    subprocess.run([str(venv / "bin" / "pip"), "install", "-q", *packages], check=True, timeout=280)
    code = "import importlib.util; assert importlib.util.find_spec('torch') is None\n" + WITHOUT_TORCH
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [str(venv / "bin" / "python"), "-c", code, str(path)], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

"""Torch-TensorRT: what we ask of it, and what is refused; a stand-in package answers, because the real one needs a GPU.

The stand-in's engine is the program itself.  `test_every_argument_exists` holds our calls against the published packages.
"""

import ast
import importlib.util
import operator
import subprocess
import sys
import zipfile
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import fx, nn

from edgewam.compile.backends import torch_tensorrt as build
from edgewam.compile.samples import random_inputs
from edgewam.core.errors import ArtifactError, EdgewamError, GateError, MissingExtraError
from edgewam.quantize.layers import Scales, find_layers, quantized, with_layers
from edgewam.runtime.backends import torch_tensorrt as run
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.engine import EngineOptions, run_engine
from edgewam.runtime.torch_memory import TorchMemory
from tests.quantize.toy import toy_stages

VERSIONS = ("2.11.0", "2.12.0", "2.13.0", "2.14.0")  # of torch-tensorrt, for the torch versions that edgewam takes


class StandIn(ModuleType):
    """`torch_tensorrt` as far as we call it.  parts: names of the parts that the partitioner makes."""

    __version__ = "2.13.0"

    def __init__(self, parts=("_run_on_acc_0",)):
        super().__init__("torch_tensorrt")
        self.__spec__ = ModuleSpec("torch_tensorrt", None)  # torch looks at the spec of every module it knows by name
        self.parts, self.given = parts, {}
        self.dynamo = SimpleNamespace(compile=self._compile)

    def _compile(self, program, **arguments):
        self.given["compile"] = arguments
        root, graph = nn.Module(), fx.Graph()
        inputs = [graph.placeholder(f"input_{number}") for number in range(len(arguments["arg_inputs"]))]
        for part in self.parts:
            root.add_module(part, program.module())
            whole = graph.call_module(part, tuple(inputs))
        count = len(program.graph_signature.user_outputs)
        graph.output(tuple(graph.call_function(operator.getitem, (whole, number)) for number in range(count)))
        return fx.GraphModule(root, graph)

    def save(self, module, file_path, **arguments):
        self.given["save"] = arguments
        torch.export.save(torch.export.export(module, tuple(arguments["arg_inputs"]), strict=False), file_path)

    def load(self, file_path):
        return torch.export.load(file_path)


@pytest.fixture
def package(monkeypatch):
    """The stand-in, on a machine whose GPU answers; tensors are on the CPU all the same."""
    package = StandIn()
    monkeypatch.setitem(sys.modules, "torch_tensorrt", package)
    library = ModuleType("tensorrt")
    library.__spec__, library.__version__ = ModuleSpec("tensorrt", None), "11.0.0.114"
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(run, "gpu", lambda options: "cpu")
    return package


@pytest.fixture
def stage():
    return toy_stages()["net"]


def test_neither_half_imports_the_package_before_it_is_used():
    code = "import sys, edgewam.compile.backends.torch_tensorrt, edgewam.runtime.backends.torch_tensorrt as run; run.supports();"
    code += "sys.exit('torch_tensorrt' in sys.modules)"
    if importlib.util.find_spec("torch_tensorrt") is None:
        assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_an_engine_is_built_loaded_and_gives_the_reference(package, stage, tmp_path):
    assert run.supports().ok and build.supports(stage).ok
    record = build.build(stage, tmp_path)
    assert record == {"file": "net.ep", "sm": "sm_90", "torch_tensorrt": "2.13.0", "tensorrt": "11.0.0.114"}
    engine = run.load(stage.without_function(), tmp_path, record, EngineOptions(threads=1))
    inputs = random_inputs(stage.inputs, 3)
    expected, found = run_engine(stage, TorchEngine(stage), inputs), run_engine(stage, engine, inputs, TorchMemory())
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-6)


def test_types_are_the_programs_and_no_mask_is_taken_for_a_causal_one(package, stage, tmp_path):
    build.build(stage, tmp_path)
    given = package.given["compile"]
    assert {name: given[name] for name in build.SETTINGS} == {
        "use_explicit_typing": True, "require_full_compilation": True, "min_block_size": 1, "immutable_weights": True,
        "attn_bias_is_causal": False, "disable_tf32": True,
    }  # fmt: skip
    assert "enabled_precisions" not in given
    assert [tuple(tensor.shape) for tensor in given["arg_inputs"]] == [spec.shape for spec in stage.inputs]
    assert package.given["save"]["output_format"] == "exported_program"


ONE, TWO, LEFT = "_run_on_acc_0", "_run_on_acc_1", "_run_on_gpu_1"


@pytest.mark.parametrize("parts, what", [((ONE, LEFT), "left _run_on_gpu_1"), ((ONE, TWO), "made 2")])
def test_a_stage_that_is_not_one_engine_fails(package, stage, tmp_path, parts, what):
    package.parts = parts
    with pytest.raises(GateError, match=rf"{what}.* of stage 'net'.*--backend tensorrt"):
        build.build(stage, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_tensorrt_cannot_take_names_the_stage_and_the_way_out(package, stage, tmp_path):
    def refuse(program, **arguments):
        raise AssertionError("require_full_compilation=True was specified, but model is not fully supported")

    package.dynamo.compile = refuse
    with pytest.raises(EdgewamError, match=r"2\.13\.0 cannot make one engine of stage 'net'.*fully.*--backend tensorrt"):
        build.build(stage, tmp_path)


@pytest.mark.parametrize("change", [{"sm": "sm_120"}, {"tensorrt": "10.16.1.11"}, {"torch_tensorrt": "2.12.0"}])
def test_an_engine_for_another_card_or_version_is_refused_with_the_command(package, stage, tmp_path, change):
    record = build.build(stage, tmp_path) | change
    with pytest.raises(ArtifactError, match=rf"net\.ep.*built for .*{next(iter(change.values()))}.*edgewam compile --backend"):
        run.load(stage, tmp_path, record, EngineOptions())


def test_a_truncated_and_a_missing_file_are_refused_with_their_name(package, stage, tmp_path):
    record = build.build(stage, tmp_path)
    path = tmp_path / record["file"]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=r"cannot open '.*net\.ep'"):
        run.load(stage, tmp_path, record, EngineOptions())
    path.unlink()
    with pytest.raises(ArtifactError, match=r"net\.ep' is missing"):
        run.load(stage, tmp_path, record, EngineOptions())


def test_a_machine_without_gpu_or_package_is_told_why(package, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no GPU" in run.supports().reason
    monkeypatch.delitem(sys.modules, "torch_tensorrt")
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None if name == "torch_tensorrt" else True)
    assert "pip install 'edgewam[tensorrt]'" in run.supports().reason
    if importlib.util.find_spec("torch_tensorrt") is None:
        with pytest.raises(MissingExtraError, match="torch_tensorrt"):
            run.load(None, Path(), {"file": ""}, EngineOptions())


def test_a_package_that_cannot_be_imported_says_what_it_lacks(package, monkeypatch):
    def broken(name, really=run.importlib.import_module):
        if name == "torch_tensorrt":
            raise OSError("Could not find libnvinfer.so.11")
        return really(name)

    monkeypatch.setattr(run.importlib, "import_module", broken)
    assert "cannot be imported: Could not find libnvinfer.so.11" in run.supports().reason


def test_types_that_tensorrt_lacks_and_quantised_layers_are_refused(package, stage):
    double = replace(stage, inputs=(replace(stage.inputs[0], dtype="float64"), stage.inputs[1]))
    assert "'image' in float64" in build.supports(double).reason
    layers = {("net", "up"): quantized(find_layers({"net": stage})["net", "up"], Scales("int8_dynamic"))}
    assert "int8_dynamic" in build.supports(with_layers({"net": stage}, layers)["net"]).reason


@pytest.mark.network
@pytest.mark.parametrize("version", VERSIONS)
def test_every_argument_exists_in_the_published_package(version, tmp_path):
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(tmp_path)]
    if subprocess.run([*command, f"torch-tensorrt=={version}"], capture_output=True, timeout=240).returncode:
        pytest.skip(f"torch-tensorrt {version} cannot be downloaded for this Python")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        compiler = wheel.read("torch_tensorrt/dynamo/_compiler.py").decode()
        api = wheel.read("torch_tensorrt/_compile.py").decode()
    known = parameters(compiler, "compile") | ({"use_explicit_typing"} if version >= "2.13" else set())  # the only way there
    assert {"arg_inputs", "device", *build.SETTINGS} <= known
    assert {"arg_inputs", *build.FORMAT} <= parameters(api, "save") and "file_path" in parameters(api, "load")
    assert build._ENGINE in compiler


def parameters(source, function):
    found = next(n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == function)
    return {argument.arg for argument in (*found.args.args, *found.args.kwonlyargs)}

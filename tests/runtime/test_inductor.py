"""The inductor backend: what it compiles, when, where it keeps kernels, and what it says when it cannot."""

import importlib.util
import os
import sysconfig

import numpy as np
import pytest
import torch

from edgewam.compile.backends import inductor as build
from edgewam.compile.build_options import BuildOptions
from edgewam.compile.compile import compile_bundle
from edgewam.compile.samples import random_inputs
from edgewam.core.errors import EdgewamError, PluginError
from edgewam.core.stage import Cost, Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.quantize.layers import Scales, find_layers, quantized, with_layers
from edgewam.runtime.backends import inductor
from edgewam.runtime.backends.eager import TorchEngine, load_module
from edgewam.runtime.backends.inductor import InductorEngine, Tuning, compiled
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.engine import EngineOptions
from edgewam.runtime.pipeline import Pipeline
from tests.compile.toy import toy_plan
from tests.quantize.toy import toy_stages

needs_compiler = pytest.mark.skipif(not inductor.supports().ok, reason=inductor.supports().reason)


def doubling_stage(function):
    x, y = TensorSpec("x", (6,)), TensorSpec("y", (6,))
    return Stage("doubling", (x,), (y,), Cost(0, 6, 1, 48), function)


def double(x):
    return (torch.sin(x) * 2 + x,)


def bound(function):
    x, y = np.arange(6, dtype=np.float32), np.zeros(6, np.float32)
    return x, y, InductorEngine(doubling_stage(double), function).bind({"x": x}, {"y": y})


@needs_compiler
@pytest.mark.slow
def test_everything_is_compiled_when_binding_and_nothing_in_a_run():
    x, y, call = bound(compiled(double))
    assert not y.any(), "binding writes to no output"
    with torch.compiler.set_stance("fail_on_recompile"):
        call()
        np.testing.assert_allclose(y, 2 * np.sin(x) + x, rtol=0, atol=1e-6)
        with torch.no_grad(), pytest.raises(RuntimeError, match="compile"):  # the stance really forbids it
            compiled(lambda x: (x.cos(),))(torch.ones(6))


@needs_compiler
@pytest.mark.slow
def test_the_mode_of_the_caller_compiles_nothing_again():
    fast = compiled(double)
    fast(torch.ones(6))
    with torch.compiler.set_stance("fail_on_recompile"), torch.no_grad():
        (found,) = fast(torch.full((6,), 2.0))
    torch.testing.assert_close(found, torch.full((6,), 2.0 + 2 * np.sin(2.0)))


@needs_compiler
def test_a_stage_that_inductor_cannot_take_is_named_with_the_way_out():
    def broken(x):
        torch._dynamo.graph_break()
        return double(x)

    with pytest.raises(EdgewamError, match=r"cannot compile stage 'doubling'.*--backend eager"):
        bound(compiled(broken))


def test_inductors_own_graphs_are_off_and_shapes_static(monkeypatch):
    given = {}
    monkeypatch.setattr(torch, "compile", lambda function, **arguments: given.update(arguments) or function)
    monkeypatch.setattr(inductor, "_missing", lambda device: "")
    compiled(double, "cuda", Tuning(max_autotune=True))
    assert given["fullgraph"] is True and given["dynamic"] is False
    assert given["options"] == {"triton.cudagraphs": False, "max_autotune": True, "coordinate_descent_tuning": False}
    compiled(double, "cpu", Tuning(coordinate_descent=True))
    assert given["options"]["coordinate_descent_tuning"] and given["options"]["cpp.threads"] == torch.get_num_threads()


@needs_compiler
def test_inductor_knows_every_option():
    compiled(double, "cpu", Tuning(max_autotune=True, coordinate_descent=True))  # torch.compile refuses an unknown one
    with pytest.raises(RuntimeError, match="option"):
        torch.compile(double, options={"triton.no_such_option": 1})


def test_without_a_compiler_it_says_which_one_is_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    support = inductor.supports()
    assert not support.ok and "no-such-compiler" in support.reason and "apt-get install" in support.reason
    with pytest.raises(PluginError, match="no-such-compiler"):
        compiled(double)


def test_without_pythons_headers_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "python3")  # some program that is there
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert "Python.h" in inductor.supports().reason
    (tmp_path / "Python.h").touch()
    assert inductor.supports().ok


def test_a_gpu_needs_triton(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PluginError, match=r"for cuda: .*'triton' is not installed"):
        compiled(double, "cuda")


@needs_compiler
def test_kernels_are_kept_in_the_users_cache_unless_another_place_is_named(monkeypatch, tmp_path):
    places = importlib.import_module("torch._inductor.runtime.cache_dir_utils")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    compiled(double)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "edgewam" / "inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", places.default_cache_dir())  # torch's own doing
    compiled(double)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "edgewam" / "inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere/else")
    compiled(double)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/somewhere/else"


def test_a_quantised_stage_is_refused_because_inductor_would_multiply_in_float32():
    stages = toy_stages()
    assert build.supports(stages["net"]).ok
    layers = {("net", "up"): quantized(find_layers(stages)["net", "up"], Scales("int8_dynamic"))}
    support = build.supports(with_layers(stages, layers)["net"])
    assert not support.ok and "'up' in int8_dynamic" in support.reason and "onnxruntime" in support.reason


def test_a_target_is_refused_because_kernels_are_compiled_where_they_run():
    with pytest.raises(PluginError, match="'inductor' builds for no particular device"):
        build.check(BuildOptions(target="rtx-5090"))


def test_the_program_it_compiles_lies_on_the_engines_device(tmp_path):
    stage = toy_stages()["net"]
    module = load_module(tmp_path, build.build(stage, tmp_path), EngineOptions(threads=1, device="meta"))
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}


@needs_compiler
@pytest.mark.slow
def test_a_bundle_of_compiled_stages_opens_and_gives_the_reference(tmp_path):
    plan = toy_plan("inductor")
    reference = Pipeline(plan.programs, plan.stages, {name: TorchEngine(stage) for name, stage in plan.stages.items()})
    bundle = Bundle.open(compile_bundle(plan, tmp_path / "toy"), threads=1)
    for seed, (name, program) in enumerate(plan.programs.programs.items()):
        inputs = random_inputs(program.inputs, 40 + seed)
        expected, found = reference.run(name, inputs), bundle.pipeline.run(name, inputs)
        for output in expected:
            np.testing.assert_allclose(found[output], expected[output], rtol=0, atol=2e-5)

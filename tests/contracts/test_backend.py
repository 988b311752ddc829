"""What every backend must do: build a small stage, load it, give the reference's result, and refuse what it cannot do."""

import numpy as np
import pytest
import torch
from torch import nn

from edgewam.compile.samples import random_inputs
from edgewam.core import plugins
from edgewam.core.errors import ArtifactError, ContractError, EdgewamError
from edgewam.core.stage import Cost, Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.deviation import deviation
from edgewam.runtime.engine import EngineOptions, run_engine

BACKENDS = plugins.names("backend_run")


class Small(nn.Module):
    """Matrix products, a table look-up, an integer image and a mask: one of each kind of input."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(12, 12)
        self.norm = nn.LayerNorm(12)
        self.table = nn.Parameter(torch.randn(5, 12))

    def forward(self, x, image, index, mask):
        """x [7, 12], image uint8 [7, 12], index int64 [1], mask bool [7] -> y [7, 12], total []."""
        h = self.norm(self.mix(x) + self.table[index]) + image.float() / 255
        h = torch.where(mask[:, None], h, x)
        return torch.softmax(h, -1), h.sum()


def small_stage() -> Stage:
    torch.manual_seed(3)
    inputs = (
        TensorSpec("x", (7, 12)), TensorSpec("image", (7, 12), "uint8"), TensorSpec("index", (1,), "int64"),
        TensorSpec("mask", (7,), "bool"),
    )  # fmt: skip
    return Stage("small", inputs, (TensorSpec("y", (7, 12)), TensorSpec("total", ())), Cost(1, 1, 7, 1), Small())


@pytest.fixture(scope="module", params=BACKENDS)
def built(request, tmp_path_factory):
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp(request.param)
    stage = small_stage()
    build, run = plugins.load("backend_build", request.param), plugins.load("backend_run", request.param)
    for support in (run.supports(), build.supports(stage)):
        if not support.ok:
            pytest.skip(support.reason)
    return stage, directory, build.build(stage, directory), build, run


def test_every_backend_has_both_halves():
    assert plugins.names("backend_build") == BACKENDS
    assert {"eager", "onnxruntime"} <= set(BACKENDS)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_result_is_the_reference_within_the_named_tolerance(built, seed):
    stage, directory, record, build, run = built
    inputs = random_inputs(stage.inputs, seed) | {"index": np.array([4])}
    expected = run_engine(stage, TorchEngine(stage), inputs)
    engine = run.load(stage.without_function(), directory, record, EngineOptions(threads=1))
    found = run_engine(stage, engine, inputs)
    for name in expected:
        assert deviation(found[name], expected[name]).within(build.TOLERANCE), name


def test_loading_twice_gives_equal_results(built):
    stage, directory, record, _, run = built
    inputs = random_inputs(stage.inputs, 5)
    first, second = (run_engine(stage, run.load(stage, directory, record, EngineOptions(threads=1)), inputs) for _ in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_a_bound_call_follows_its_memory(built):
    stage, directory, record, _, run = built
    engine = run.load(stage, directory, record, EngineOptions(threads=1))
    inputs, y = random_inputs(stage.inputs, 6), np.zeros((7, 12), np.float32)
    call = engine.bind(inputs, {"y": y})  # only the wanted output
    call()
    first = y.copy()
    np.copyto(inputs["x"], 2 * inputs["x"])
    call()
    assert np.abs(first - y).max() > 1e-3
    np.testing.assert_allclose(y, run_engine(stage, engine, inputs)["y"], rtol=0, atol=1e-7)


def test_wrong_shapes_and_names_are_refused_at_binding(built):
    stage, directory, record, _, run = built
    engine = run.load(stage, directory, record, EngineOptions(threads=1))
    inputs = random_inputs(stage.inputs, 6)
    with pytest.raises(ContractError, match="'x' must be"):
        run_engine(stage, engine, inputs | {"x": np.zeros((7, 13), np.float32)})
    with pytest.raises(ContractError, match="exactly the inputs"):
        run_engine(stage, engine, {name: array for name, array in inputs.items() if name != "mask"})
    with pytest.raises(ContractError, match="C-contiguous"):
        run_engine(stage, engine, inputs | {"x": np.zeros((12, 7), np.float32).T})


def test_a_truncated_file_is_refused_with_its_name(built, tmp_path):
    stage, directory, record, _, run = built
    data = (directory / record["file"]).read_bytes()
    (tmp_path / record["file"]).write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=record["file"]):
        run.load(stage, tmp_path, record, EngineOptions())


def test_a_stage_without_function_is_refused_with_a_reason(built):
    stage, _, _, build, _ = built
    support = build.supports(stage.without_function())
    assert not support.ok and "no function" in support.reason


def test_supported_stages_are_supported(built):
    stage, _, _, build, run = built
    assert build.supports(stage).ok and run.supports().ok


def test_onnxruntime_refuses_bfloat16_with_a_reason():
    stage = small_stage()
    wide = Stage("wide", (TensorSpec("x", (2,), "bfloat16"),), stage.outputs, stage.cost, stage.function)
    support = plugins.load("backend_build", "onnxruntime").supports(wide)
    assert not support.ok and "bfloat16" in support.reason


def test_onnxruntime_refuses_a_graph_of_another_stage(built):
    stage, directory, record, _, run = built
    if not record["file"].endswith(".onnx"):
        pytest.skip("only an ONNX file names its inputs")
    other = Stage("small", stage.inputs[:2], stage.outputs, stage.cost)
    with pytest.raises(ArtifactError, match="declares"):
        run.load(other, directory, record, EngineOptions())


class Branching(nn.Module):
    """Not a stage: it looks at a value."""

    def forward(self, x):
        """x [2] -> x or -x."""
        return (x if x.sum() > 0 else -x,)


def test_a_stage_that_branches_on_values_is_refused_by_name(built, tmp_path):
    *_, build, _ = built
    specs = (TensorSpec("x", (2,)),), (TensorSpec("y", (2,)),)
    with pytest.raises(EdgewamError, match="Stage 'branching' cannot be exported"):
        build.build(Stage("branching", *specs, Cost(0, 0, 1, 16), Branching()), tmp_path)

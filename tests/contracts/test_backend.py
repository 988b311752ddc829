"""What every backend must do: build a small stage, load it, give the reference's result, and refuse what it cannot do.

Everything runs in the backend's own memory, on the CPU and on a GPU where there is one.
"""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from edgewam.compile.build_options import ANY_MACHINE, BuildOptions
from edgewam.compile.samples import random_inputs
from edgewam.core import plugins
from edgewam.core.errors import ArtifactError, ContractError, EdgewamError
from edgewam.core.stage import Cost, Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.profiles.device import find_device
from edgewam.profiles.machine import read_machine
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.deviation import deviation
from edgewam.runtime.engine import EngineOptions, run_engine
from edgewam.runtime.memory import HostMemory, Memory
from edgewam.runtime.torch_memory import TorchMemory

BACKENDS = plugins.names("backend_run")
# bfloat16 has 8 bits: eager rounds between any two operators, a fused kernel only at the end, and this stage has six of them
BFLOAT16_TOLERANCE = 2e-2


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


class Wide(nn.Module):
    """The same kinds of operators in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(12, 12).bfloat16()
        self.norm = nn.LayerNorm(12).bfloat16()

    def forward(self, x):
        """x bfloat16 [7, 12] -> y bfloat16 [7, 12]."""
        return (torch.softmax(self.norm(self.mix(x)) * 2 + x, -1),)


def wide_stage() -> Stage:
    torch.manual_seed(4)
    x, y = (TensorSpec(name, (7, 12), "bfloat16") for name in "xy")
    return Stage("wide", (x,), (y,), Cost(1, 1, 7, 1), Wide())


def build_options(build: ModuleType) -> BuildOptions:
    """TensorRT builds for one device: the one that will run it here."""
    device = find_device(read_machine().gpu.get("name", "")) if build.__name__.endswith(".tensorrt") else None
    return BuildOptions(target=device.name) if device else ANY_MACHINE


@dataclass(frozen=True)
class Built:
    """The small stage built by one backend, and both halves."""

    stage: Stage
    directory: Path
    record: dict
    build: ModuleType
    run: ModuleType
    options: EngineOptions
    memory: Memory

    def load(self):
        """A new engine."""
        return self.run.load(self.stage.without_function(), self.directory, self.record, self.options)

    def results(self, engine, inputs):
        """One call in this backend's memory."""
        return run_engine(self.stage, engine, inputs, self.memory)

    def buffers(self, specs, arrays):
        """Buffers of some specs; those that have an array hold it."""
        made = {spec.name: self.memory.allocate(spec) for spec in specs}
        for name, array in arrays.items():
            self.memory.write(made[name], array)
        return made


@pytest.fixture(scope="module", params=[(name, device) for name in BACKENDS for device in ("cpu", "cuda")], ids="-".join)
def built(request, tmp_path_factory):
    name, device = request.param
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    torch.set_num_threads(1)
    stage = small_stage()
    build, run = plugins.load("backend_build", name), plugins.load("backend_run", name)
    for support in (run.supports(), build.supports(stage)):
        if not support.ok:
            pytest.skip(support.reason)
    options = EngineOptions(threads=1, device=device)
    memory = run.memory(options)
    if device == "cuda" and isinstance(memory, HostMemory):
        pytest.skip(f"{name} runs on the CPU only")
    directory = tmp_path_factory.mktemp(f"{name}-{device}")
    return Built(stage, directory, build.build(stage, directory, build_options(build)), build, run, options, memory)


def test_every_backend_has_both_halves():
    assert plugins.names("backend_build") == BACKENDS
    assert {"eager", "fused", "inductor", "onnxruntime", "torch_tensorrt"} <= set(BACKENDS)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_result_is_the_reference_within_the_named_tolerance(built, seed):
    inputs = random_inputs(built.stage.inputs, seed) | {"index": np.array([4])}
    expected = run_engine(built.stage, TorchEngine(built.stage), inputs)
    found = built.results(built.load(), inputs)
    for name in expected:
        assert deviation(found[name], expected[name]).within(built.build.TOLERANCE), name


def test_loading_twice_gives_equal_results(built):
    inputs = random_inputs(built.stage.inputs, 5)
    first, second = (built.results(built.load(), inputs) for _ in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_a_bound_call_follows_its_memory(built):
    engine, place = built.load(), built.memory
    arrays = random_inputs(built.stage.inputs, 6)
    inputs, outputs = built.buffers(built.stage.inputs, arrays), built.buffers(built.stage.outputs[:1], {})
    call = engine.bind(inputs, outputs)  # only the wanted output
    assert not place.read(outputs["y"]).any(), "binding must write nothing: the buffer may be a state"

    def called():
        with place.on(place.stream()):
            call()
        place.synchronize()
        return place.read(outputs["y"])

    first = called()
    place.write(inputs["x"], 2 * arrays["x"])
    second = called()
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_allclose(second, built.results(engine, arrays | {"x": 2 * arrays["x"]})["y"], rtol=0, atol=1e-7)


def test_wrong_shapes_and_names_are_refused_at_binding(built):
    engine = built.load()
    inputs, outputs = built.buffers(built.stage.inputs, {}), built.buffers(built.stage.outputs, {})
    for shape, dtype in (((7, 13), "float32"), ((7, 12), "float16")):
        wrong = built.memory.allocate(TensorSpec("x", shape, dtype))
        with pytest.raises(ContractError, match="'x' must be"):
            engine.bind(inputs | {"x": wrong}, outputs)
    with pytest.raises(ContractError, match="exactly the inputs"):
        engine.bind({name: buffer for name, buffer in inputs.items() if name != "mask"}, outputs)


def test_memory_with_gaps_is_refused_at_binding(built):
    flat = built.memory.allocate(TensorSpec("x", (12, 7)))
    if not hasattr(flat, "T"):
        pytest.skip("buffers of this memory have no gaps")
    inputs, outputs = built.buffers(built.stage.inputs, {}), built.buffers(built.stage.outputs, {})
    with pytest.raises(ContractError, match="C-contiguous"):
        built.load().bind(inputs | {"x": flat.T}, outputs)


def test_a_bfloat16_boundary_gives_the_reference(built, tmp_path):
    stage = wide_stage()
    support = built.build.supports(stage)
    if not support.ok:
        pytest.skip(support.reason)
    record = built.build.build(stage, tmp_path, build_options(built.build))
    engine = built.run.load(stage.without_function(), tmp_path, record, built.options)
    inputs = random_inputs(stage.inputs, 3)
    expected = run_engine(stage, TorchEngine(stage), inputs, TorchMemory())["y"]
    found = run_engine(stage, engine, inputs, built.memory)["y"]
    assert deviation(found, expected).within(BFLOAT16_TOLERANCE)
    np.testing.assert_array_equal(found, torch.from_numpy(found).bfloat16().float().numpy())  # it really was bfloat16


def test_a_truncated_file_is_refused_with_its_name(built, tmp_path):
    file = built.record["file"]
    data = (built.directory / file).read_bytes()
    (tmp_path / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=file):
        built.run.load(built.stage, tmp_path, built.record, built.options)


def test_a_stage_without_function_is_refused_with_a_reason(built):
    support = built.build.supports(built.stage.without_function())
    assert not support.ok and "no function" in support.reason


def test_onnxruntime_refuses_bfloat16_with_a_reason():
    support = plugins.load("backend_build", "onnxruntime").supports(wide_stage())
    assert not support.ok and "bfloat16" in support.reason


def test_onnxruntime_refuses_a_graph_of_another_stage(built):
    if not built.record["file"].endswith(".onnx"):
        pytest.skip("only an ONNX file names its inputs")
    other = Stage("small", built.stage.inputs[:2], built.stage.outputs, built.stage.cost)
    with pytest.raises(ArtifactError, match="declares"):
        built.run.load(other, built.directory, built.record, built.options)


class Branching(nn.Module):
    """Not a stage: it looks at a value."""

    def forward(self, x):
        """x [2] -> x or -x."""
        return (x if x.sum() > 0 else -x,)


def test_a_stage_that_branches_on_values_is_refused_by_name(built, tmp_path):
    specs = (TensorSpec("x", (2,)),), (TensorSpec("y", (2,)),)
    with pytest.raises(EdgewamError, match="Stage 'branching' cannot be exported"):
        built.build.build(Stage("branching", *specs, Cost(0, 0, 1, 16), Branching()), tmp_path, build_options(built.build))

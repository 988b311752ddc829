"""The run half of `tensorrt` on a fake library and a fake GPU: what is refused, what is bound, and graphs of whole programs.

The real library is asked what it can do without a GPU: refuse a file.
"""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from edgewam.core.errors import ArtifactError, ContractError, EdgewamError, MissingExtraError
from edgewam.core.program import Call, Loop, Program, Programs, Push, State
from edgewam.core.stage import Cost, Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime import tensorrt_api
from edgewam.runtime.backends import tensorrt
from edgewam.runtime.engine import EngineOptions, run_engine
from edgewam.runtime.memory import CaptureError
from edgewam.runtime.pipeline import Pipeline
from tests.runtime.fake_cuda import FakeCudart
from tests.runtime.fake_tensorrt import VERSION, engine_file, module_over

OPTIONS = EngineOptions(1)
RECORD = {"file": "step.engine", "library": "tensorrt_rtx", "version": VERSION, "target": "rtx-5090", "sm": "sm_120"}
STEP = Stage(
    "step", (TensorSpec("x", (3,)), TensorSpec("rate", ())), (TensorSpec("y", (3,)), TensorSpec("twice", (3,))), Cost(0, 0, 1, 0)
)
STEP_FILE = engine_file("step", [("x", [3], "FLOAT"), ("rate", [], "FLOAT")], [("y", [3], "FLOAT"), ("twice", [3], "FLOAT")])
REBUILD = "edgewam compile POLICY BUNDLE --backend tensorrt --target rtx-5090"
X = np.array([1, 0, -1], np.float32)


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCudart()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module_over(fake))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    tensorrt_api.load.cache_clear()
    yield fake
    tensorrt_api.load.cache_clear()


@pytest.fixture
def memory(cuda):
    return tensorrt.memory(OPTIONS)


def opened(tmp_path, data=STEP_FILE, stage=STEP, record=RECORD, options=OPTIONS):
    (tmp_path / "step.engine").write_bytes(data)
    return tensorrt.load(stage, tmp_path, record, options)


# ---- what is refused


def test_both_libraries_missing_names_both_ways_to_get_one(cuda, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    tensorrt_api.load.cache_clear()
    support = tensorrt.supports()
    assert not support.ok and "pip install 'edgewam[rtx]'" in support.reason and "NVIDIA's own package index" in support.reason


def test_a_library_without_a_gpu_is_no_support(cuda):
    assert tensorrt.supports().ok
    cuda.gpus = 0
    assert "no CUDA-capable device" in tensorrt.supports().reason


@pytest.mark.parametrize("data", [STEP_FILE[:-5], b"nonsense", b""])
def test_a_damaged_file_is_refused_with_its_name(cuda, tmp_path, data):
    with pytest.raises(ArtifactError, match=r"step.engine'.*(magic tag mismatch|missing or empty)") as caught:
        opened(tmp_path, data)
    assert not data or REBUILD in str(caught.value)


def test_a_missing_file_is_refused_before_anything_else(tmp_path):
    with pytest.raises(ArtifactError, match=r"none' is missing"):
        tensorrt.load(STEP, tmp_path, {"file": "none"}, OPTIONS)


def test_an_engine_for_another_card_is_refused_with_the_command_that_rebuilds(cuda, tmp_path):
    said = r"built for rtx-4090 \(sm_89\), and this GPU is NVIDIA GeForce RTX 5090 \(sm_120\)"
    with pytest.raises(ArtifactError, match=said) as caught:
        opened(tmp_path, record=RECORD | {"target": "rtx-4090", "sm": "sm_89"})
    assert REBUILD in str(caught.value)


def test_a_card_that_no_device_file_names_is_found_by_its_architecture(cuda, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "cudaGetDeviceProperties", lambda device: (0, SimpleNamespace(name=b"Odd card", major=8, minor=7)))
    with pytest.raises(ArtifactError, match=r"this GPU is Odd card \(sm_87\).*--target orin"):
        opened(tmp_path)


def test_another_version_of_the_library_is_refused_with_both_ways_out(cuda, tmp_path):
    with pytest.raises(ArtifactError, match=r"tensorrt_rtx 1\.6\.1\.120, and 1\.7\.1\.116 is installed") as caught:
        opened(tmp_path, record=RECORD | {"version": "1.6.1.120"})
    assert "pip install 'tensorrt-rtx==1.6.1.120'" in str(caught.value) and REBUILD in str(caught.value)


def test_an_engine_of_the_library_that_is_not_installed_says_how_to_get_it(cuda, tmp_path):
    with pytest.raises(MissingExtraError, match="NVIDIA's own package index"):
        opened(tmp_path, record=RECORD | {"library": "tensorrt"})


@pytest.mark.parametrize("record", [{"file": "step.engine"}, RECORD | {"library": "odd"}])
def test_a_record_of_another_version_of_edgewam_is_refused(cuda, tmp_path, record):
    with pytest.raises(ArtifactError, match="another version of edgewam"):
        opened(tmp_path, record=record)


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"), [
        ([("x", [4], "FLOAT"), ("rate", [], "FLOAT")], None, r"inputs x float32\[4\], rate .* but stage 'step' declares"),
        ([("x", [3], "HALF"), ("rate", [], "FLOAT")], None, r"inputs x float16\[3\]"),
        ([("x", [3], "FLOAT")], None, r"inputs x float32\[3\], but"),
        (None, [("y", [3], "FLOAT"), ("other", [3], "FLOAT")], "outputs y .*other"),
        ([("x", [-1], "FLOAT"), ("rate", [], "FLOAT")], None, "'x' of a shape known only at run time"),
    ],
)  # fmt: skip
def test_an_engine_of_another_stage_is_refused(cuda, tmp_path, inputs, outputs, said):
    inputs = inputs or [("x", [3], "FLOAT"), ("rate", [], "FLOAT")]
    outputs = outputs or [("y", [3], "FLOAT"), ("twice", [3], "FLOAT")]
    with pytest.raises(ArtifactError, match=said):
        opened(tmp_path, engine_file("step", inputs, outputs))


def test_an_engine_that_wants_host_memory_is_refused(cuda, tmp_path):
    with pytest.raises(ArtifactError, match="'rate' of a shape known only at run time"):
        opened(tmp_path, engine_file("step", [("x", [3], "FLOAT"), ("rate", [], "FLOAT")], [], host=["rate"]))


def test_buffers_from_elsewhere_are_refused(cuda, memory, tmp_path):
    engine = opened(tmp_path)
    with pytest.raises(ContractError, match=r"bind it to buffers of one memory that `memory\(options\)` gives"):
        engine.bind({"x": X, "rate": np.zeros((), np.float32)}, {})
    with pytest.raises(ContractError, match="of one memory"):
        engine.bind({"x": memory.allocate(STEP.inputs[0]), "rate": tensorrt.memory(OPTIONS).allocate(STEP.inputs[1])}, {})


def test_no_room_for_a_context_says_so(cuda, memory, tmp_path):
    engine = opened(tmp_path)
    buffers = {spec.name: memory.allocate(spec) for spec in STEP.inputs}
    cuda.room = -1
    with pytest.raises(EdgewamError, match="no room for stage 'step': Error Code 2: OutOfMemory"):
        engine.bind(buffers, {})


@pytest.mark.parametrize(("sm", "library"), [((12, 0), "tensorrt_rtx"), ((9, 0), "tensorrt")])
def test_the_facts_of_a_bundle_name_the_library_that_serves_the_card(cuda, monkeypatch, sm, library):
    monkeypatch.setitem(sys.modules, "tensorrt", module_over(cuda))
    monkeypatch.setattr(
        cuda, "cudaGetDeviceProperties", lambda device: (0, SimpleNamespace(name=b"Card", major=sm[0], minor=sm[1]))
    )
    assert tensorrt.memory(OPTIONS).device_facts()["runtime"] == f"{library} {VERSION}"


@pytest.mark.parametrize(("device", "index"), [("cpu", 0), ("cuda", 0), ("cuda:2", 2)])
def test_a_device_is_named_as_for_torch(device, index):
    assert tensorrt.device_index(EngineOptions(device=device)) == index


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:1:"])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(ContractError, match="Use cuda or cuda:<n>"):
        tensorrt.device_index(EngineOptions(device=device))


def test_the_engine_is_opened_on_the_chosen_gpu(cuda, tmp_path):
    cuda.gpus = 2
    opened(tmp_path, options=EngineOptions(device="cuda:1"))
    assert cuda.devices == [1]


# ---- what is bound


def test_a_call_computes_from_what_its_memory_holds_then(memory, tmp_path):
    engine = opened(tmp_path)
    result = run_engine(STEP, engine, {"x": X, "rate": np.array(2, np.float32)}, memory)
    np.testing.assert_array_equal(result["y"], X * 2 + 1)
    np.testing.assert_array_equal(result["twice"], 2 * X)


def test_every_bound_call_has_its_own_context(memory, tmp_path):
    engine = opened(tmp_path)
    calls, results = [], []
    for value in (2, 3):
        buffers = {spec.name: memory.allocate(spec) for spec in STEP.inputs}
        memory.write(buffers["x"], X)
        memory.write(buffers["rate"], np.array(value, np.float32))
        results.append(memory.allocate(STEP.outputs[0]))
        calls.append(engine.bind(buffers, {"y": results[-1]}))  # `twice` goes to a place of its own
        del buffers  # the call alone keeps the memory
    for call in calls:
        call()
    memory.synchronize()
    assert [memory.read(result).tolist() for result in results] == [(X * value + 1).tolist() for value in (2, 3)]
    assert len(engine.engine.contexts) == 2
    assert engine.engine.num_compilations == 1  # the second context takes the kernels of the first


def test_full_tensorrt_runs_by_the_same_code_and_shares_no_kernels(cuda, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", module_over(cuda))
    monkeypatch.setattr(
        cuda, "cudaGetDeviceProperties", lambda device: (0, SimpleNamespace(name=b"NVIDIA Thor", major=11, minor=0))
    )
    record = RECORD | {"library": "tensorrt", "target": "thor", "sm": "sm_110"}
    memory, engine = tensorrt.memory(OPTIONS), opened(tmp_path, record=record)
    for value in (2, 3):
        result = run_engine(STEP, engine, {"x": X, "rate": np.array(value, np.float32)}, memory)
        np.testing.assert_array_equal(result["y"], X * value + 1)
    assert engine.engine.num_compilations == 2  # its contexts know no cache


def test_integers_masks_and_bfloat16_pass_as_they_are(memory, tmp_path):
    specs = TensorSpec("image", (2, 3), "uint8"), TensorSpec("index", (1,), "int64"), TensorSpec("mask", (2, 3), "bool")
    mix = Stage("mix", specs, (TensorSpec("y", (2, 3)),), Cost(0, 0, 1, 0))
    types = [("image", [2, 3], "UINT8"), ("index", [1], "INT64"), ("mask", [2, 3], "BOOL")]
    inputs = {"image": np.arange(250, 256, dtype=np.uint8).reshape(2, 3), "index": np.array([-7]), "mask": np.eye(2, 3) > 0}
    engine = opened(tmp_path, engine_file("mix", types, [("y", [2, 3], "FLOAT")]), mix)
    assert run_engine(mix, engine, inputs, memory)["y"].tolist() == [[250, -7, -7], [-7, 254, -7]]
    half = Stage("half", (TensorSpec("x", (3,), "bfloat16"),), (TensorSpec("y", (3,), "bfloat16"),), Cost(0, 0, 1, 0))
    engine = opened(tmp_path, engine_file("half", [("x", [3], "BF16")], [("y", [3], "BF16")]), half)
    assert run_engine(half, engine, {"x": X}, memory)["y"].tolist() == [1.0078125, 0, -1.0078125]


def test_an_address_that_tensorrt_does_not_take_is_copied_within_the_call(cuda, memory, tmp_path):
    """Row 1 of a narrow table lies 12 bytes behind an aligned address."""
    engine = opened(tmp_path)
    table, target = memory.allocate(TensorSpec("table", (2, 3))), memory.allocate(TensorSpec("target", (2, 3)))
    rate, stream = memory.allocate(STEP.inputs[1]), memory.stream()
    memory.write(rate, np.array(2, np.float32))
    call = engine.bind({"x": memory.row(table, 1), "rate": rate}, {"y": memory.row(target, 1)})
    for value in (1, 5):
        memory.write(table, np.stack([9 * X, value * X]))
        with memory.on(stream):
            call()
        memory.synchronize(stream)
        np.testing.assert_array_equal(memory.read(target), [[0, 0, 0], value * X * 2 + 1])


def test_a_stage_that_cannot_start_says_what_the_library_said(cuda, memory, tmp_path):
    engine = opened(tmp_path)
    call = engine.bind({spec.name: memory.allocate(spec) for spec in STEP.inputs}, {})
    engine.engine.contexts[0].addresses.pop("twice")
    with pytest.raises(EdgewamError, match=r"could not start stage 'step': .*a tensor has no address"):
        call()


# ---- whole programs


def programs():
    """A ring of two slots, a loop of three steps that carries x, and the rows of a narrow table."""
    call = Call("step", {"x": "x", "rate": "rate"}, {"y": "x"})
    act = Program("act", (TensorSpec("x", (3,)),), ("x",), (), Loop((call,), {"rate": "rates"}, 3))
    plan = Program("plan", (TensorSpec("x", (3,)), TensorSpec("slot", (1,), "int64")), (), (Push("x", "ring", "slot"),))
    ring = State(TensorSpec("ring", (2, 3)), "plan")
    return Programs((ring,), {"act": act, "plan": plan}, {"rates": np.array([2, 3, 5], np.float32)})


def pipeline(memory, tmp_path):
    return Pipeline(programs(), {"step": STEP}, {"step": opened(tmp_path)}, memory)


def test_a_program_runs_eagerly_and_as_one_graph_with_the_same_result(cuda, memory, tmp_path):
    made = pipeline(memory, tmp_path)
    eager = made.run("act", {"x": X})["x"]
    np.testing.assert_array_equal(eager, ((X * 2 + 1) * 3 + 1) * 5 + 1)
    assert made.capture("act", {"x": X}) == "bitwise"
    before = len(cuda.launches)
    np.testing.assert_array_equal(made.run("act", {"x": X})["x"], eager)
    np.testing.assert_array_equal(made.run("act", {"x": 2 * X})["x"], ((2 * X * 2 + 1) * 3 + 1) * 5 + 1)
    assert len(cuda.launches) == before + 2  # a whole chunk is one launch


def test_nothing_is_allocated_while_a_graph_runs(cuda, memory, tmp_path):
    made = pipeline(memory, tmp_path)
    made.capture("act", {"x": X})
    cuda.calls.clear()
    made.run("act", {"x": X})
    assert "cudaMalloc" not in cuda.calls and "cudaHostAlloc" not in cuda.calls and cuda.calls.count("cudaGraphLaunch") == 1


def test_a_ring_is_filled_by_its_slot(memory, tmp_path):
    made = pipeline(memory, tmp_path)
    for slot in (1, 0):
        made.run("plan", {"x": X * (slot + 1), "slot": np.array([slot])})
    np.testing.assert_array_equal(made.state("ring"), [X, 2 * X])


def test_a_call_that_never_ran_is_not_captured(memory, tmp_path):
    engine = opened(tmp_path)
    call = engine.bind({spec.name: memory.allocate(spec) for spec in STEP.inputs}, {})
    with pytest.raises(CaptureError, match="operation not permitted when stream is capturing"):
        memory.capture([call], memory.stream())
    call()
    assert memory.capture([call], memory.stream()).num_nodes == 1


# ---- without torch, and with the real library


def test_nothing_of_it_needs_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from edgewam.runtime.backends import tensorrt\n"
        "from edgewam.runtime.engine import EngineOptions\n"
        "from edgewam.runtime.pipeline import Pipeline\n"
        "from tests.runtime import test_tensorrt_run as t\n"
        "from tests.runtime.fake_cuda import FakeCudart; from tests.runtime.fake_tensorrt import module_over\n"
        "import pathlib, tempfile, numpy as np\n"
        "fake = FakeCudart(); sys.modules['cuda.bindings.runtime'] = fake; sys.modules['tensorrt_rtx'] = module_over(fake)\n"
        "with tempfile.TemporaryDirectory() as where:\n"
        "    made = t.pipeline(tensorrt.memory(t.OPTIONS), pathlib.Path(where))\n"
        "    made.capture('act', {'x': t.X})\n"
        "    assert made.run('act', {'x': t.X})['x'].tolist() == [51, 21, -9]\n"
        "    heavy = {'onnx', 'onnxruntime', 'safetensors', 'ml_dtypes'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_real_library_refuses_a_file_and_its_words_are_told(monkeypatch, tmp_path):
    real = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", FakeCudart())
    with pytest.raises(ArtifactError, match=r"tensorrt_rtx .* cannot open .*step\.engine': (?!it gives no reason)"):
        opened(tmp_path, b"no engine at all" * 100, record=RECORD | {"version": real.__version__})


def test_what_the_build_half_writes_is_what_this_half_asks_for(monkeypatch, tmp_path):
    """A real engine of the real library, which opens it only where there is a driver; everything before that is passed."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from edgewam.compile.backends import tensorrt as build_half
    from edgewam.compile.build_options import BuildOptions

    module = torch.nn.Linear(16, 16)
    module.forward = lambda x, layer=module: (torch.nn.functional.linear(x, layer.weight, layer.bias),)
    stage = Stage("linear", (TensorSpec("x", (4, 16)),), (TensorSpec("y", (4, 16)),), Cost(1, 1, 4, 1), module)
    record = build_half.build(stage, tmp_path, BuildOptions("rtx-5090"))
    cuda = FakeCudart()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    if not supports_really():
        with pytest.raises(ArtifactError, match=r"cannot open .*linear\.engine': .*driver"):
            tensorrt.load(stage, tmp_path, record, OPTIONS)
    monkeypatch.setattr(
        cuda, "cudaGetDeviceProperties", lambda device: (0, SimpleNamespace(name=b"NVIDIA Thor", major=11, minor=0))
    )
    with pytest.raises(
        ArtifactError, match=r"built for rtx-5090 \(sm_120\), and this GPU is NVIDIA Thor \(sm_110\).*--target thor"
    ):
        tensorrt.load(stage, tmp_path, record, OPTIONS)


def supports_really():
    code = "from edgewam.runtime.cuda_api import gpu_support; print(gpu_support().ok)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout.strip() == "True"

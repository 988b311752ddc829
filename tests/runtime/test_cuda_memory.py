"""CUDA through cuda-python on a fake device: order on streams, captured graphs, freed memory, and errors that say what to do.

The fake is compared with the real `cuda.bindings.runtime`; what a real GPU does with the same calls is not shown here.
"""

import ast
import gc
import inspect
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgewam.core.errors import ContractError, PluginError
from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime import bfloat16, cuda_api, cuda_graph, cuda_memory, cuda_port
from edgewam.runtime.cuda_api import CudaError, gpu_support
from edgewam.runtime.cuda_memory import CudaMemory
from edgewam.runtime.memory import CaptureError
from tests.runtime.fake_cuda import ALIGNMENT, FakeCudart, cudaError_t

ROW = TensorSpec("row", (3,))
SOURCES = [Path(module.__file__) for module in (cuda_api, cuda_graph, cuda_memory, cuda_port)]


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCudart()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    return fake


@pytest.fixture
def memory(cuda):
    return CudaMemory()


def filled(memory, values, dtype="float32"):
    array = np.asarray(values, "float32" if dtype == "bfloat16" else dtype)
    buffer = memory.allocate(TensorSpec("x", array.shape, dtype))
    memory.write(buffer, array)
    return buffer


# ---- the device


def test_the_device_says_what_a_bundle_is_checked_against(memory):
    assert memory.device == cuda_api.CudaDevice("NVIDIA GeForce RTX 5090", "sm_120", driver=(13, 0), runtime=(13, 5))


def test_the_facts_of_a_bundle_name_the_driver_as_nvidias_tools_do(memory, monkeypatch):
    monkeypatch.setattr(cuda_memory, "read_gpu", lambda: {"driver": "580.95.05"})
    facts = {"name": "NVIDIA GeForce RTX 5090", "sm": "sm_120", "driver": "580.95.05", "runtime": "CUDA 13.5"}
    assert memory.device_facts() == facts and memory.has_graphs
    monkeypatch.setattr(cuda_memory, "read_gpu", dict)  # no nvidia-smi in this container
    monkeypatch.setattr(cuda_memory, "read_nvidia", lambda: ("575.1", ()))
    assert memory.device_facts() == facts | {"driver": "575.1"}


def test_the_chosen_gpu_is_selected_in_every_thread_that_works(cuda):
    cuda.gpus = 2
    memory = CudaMemory(1)
    cuda.devices.clear()
    worker = threading.Thread(target=lambda: memory.allocate(ROW))
    worker.start()
    worker.join()
    assert cuda.devices and set(cuda.devices) == {1}


@pytest.mark.parametrize(
    ("state", "said"), [
        ({"driver": 0}, "no NVIDIA driver is loaded, or this process cannot reach it. In a container, start it with: docker run"),
        ({"driver": 12060}, "serves CUDA 12.6, and the installed cuda-bindings need CUDA 13. .*'cuda-bindings>=12,<13'"),
        ({"gpus": 0}, r"no CUDA-capable device is detected \(cudaErrorNoDevice\)"),
        ({"failures": {"cudaGetDeviceCount": cudaError_t.cudaErrorNotSupported}}, "operation not supported .*edgewam doctor"),
    ],
)  # fmt: skip
def test_a_machine_without_a_usable_gpu_gives_the_reason_and_the_next_step(cuda, state, said):
    vars(cuda).update(state)
    support = gpu_support()
    assert not support.ok
    with pytest.raises(PluginError, match=said):
        CudaMemory()


def test_a_gpu_that_is_not_there_is_refused_with_the_number_of_those_that_are(cuda):
    assert "there is no GPU 3; CUDA finds 1" in gpu_support(3).reason


def test_without_the_bindings_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    assert "pip install 'cuda-bindings>=13,<14'" in gpu_support().reason


def test_a_newer_minor_version_of_the_bindings_is_served(cuda):
    cuda.driver, cuda.runtime = 13000, 13050
    assert gpu_support().ok


# ---- buffers


def test_memory_that_does_not_fit_says_what_was_wanted_and_what_to_do(cuda, memory):
    cuda.room = 1000
    with pytest.raises(CudaError, match=r"allocating 4000 bytes for 'big': out of memory .*nvidia-smi.*smaller plan"):
        memory.allocate(TensorSpec("big", (1000,)))


def test_addresses_are_aligned_and_empty_tensors_have_one(cuda, memory):
    for shape in [(0, 3), (), (5, 7)]:
        buffer = memory.allocate(TensorSpec("x", shape))
        assert buffer.pointer and buffer.pointer % ALIGNMENT == 0 and memory.read(buffer).shape == shape


def test_memory_is_freed_with_its_last_view(cuda, memory):
    before = cuda.live
    table = filled(memory, np.arange(6, dtype=np.float32).reshape(2, 3))
    row = memory.row(table, 1)
    del table
    assert memory.read(row).tolist() == [3, 4, 5]
    del row
    gc.collect()
    assert cuda.live == before


def test_a_bound_copy_keeps_its_memory_alive(cuda, memory):
    target = memory.allocate(ROW)
    call = memory.copy(target, filled(memory, [1, 2, 3]))  # nothing else holds the source
    gc.collect()
    call()
    assert memory.read(target).tolist() == [1, 2, 3]


def test_everything_is_given_back_when_the_memory_dies(cuda):
    memory = CudaMemory()
    port, stream = memory.port(ROW), memory.stream(1)
    port.upload()
    graph = memory.capture([port.upload], stream)
    assert cuda.live != (0, 0, 0, 0, 0)
    del memory, port, stream, graph
    gc.collect()
    assert cuda.live == (0, 0, 0, 0, 0)


def test_pinned_memory_lives_as_long_as_its_array(cuda, memory):
    port = memory.port(ROW)
    host = port.host[1:]
    del port
    gc.collect()
    host[:] = 7
    assert cuda.live[1] == 1
    del host
    gc.collect()
    assert cuda.live[1] == 0


def test_wrong_arrays_rows_and_copies_are_refused(memory):
    buffer = memory.allocate(TensorSpec("x", (2, 3)))
    with pytest.raises(ContractError, match="must be"):
        memory.write(buffer, np.zeros((3, 2), np.float32))
    with pytest.raises(ContractError, match="must be"):
        memory.write(buffer, np.zeros((2, 3)))
    with pytest.raises(ContractError, match="no rows 1:3"):
        memory.rows(buffer, 1, 3)
    with pytest.raises(ContractError, match="must be"):
        memory.copy(buffer, memory.rows(buffer, 0, 1))
    with pytest.raises(ContractError, match="inside of engines only"):
        memory.allocate(TensorSpec("x", (2,), "float8_e4m3"))


def test_a_status_nobody_expects_is_still_told_in_cudas_words(cuda, memory):
    cuda.failures["cudaMemcpyAsync"] = cudaError_t.cudaErrorInvalidResourceHandle
    with pytest.raises(CudaError, match=r"copying 12 bytes: invalid resource handle \(cudaErrorInvalidResourceHandle\)"):
        memory.read(memory.allocate(ROW))


def test_bfloat16_is_rounded_half_to_even_and_keeps_what_is_not_a_number():
    one, step = 1.0, 2.0**-7
    ties = np.array([one + step / 2, one + 3 * step / 2, -one - step / 2, one + step / 2 * 1.01], np.float32)
    assert bfloat16.from_bits(bfloat16.to_bits(ties)).tolist() == [one, one + 2 * step, -one, one + step]
    odd = np.array([np.nan, -np.nan, np.inf, -np.inf, 0, -0.0, 3.4e38], np.float32)
    found = bfloat16.from_bits(bfloat16.to_bits(odd))
    assert np.isnan(found[:2]).all() and found[2:6].tolist() == [np.inf, -np.inf, 0, 0] and found[6] == np.inf
    assert np.signbit(found[5])


def test_bfloat16_agrees_with_torch_on_every_kind_of_number():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(1).integers(0, 2**32, 100_000, np.uint64).astype(np.uint32).view(np.float32)
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(bfloat16.from_bits(bfloat16.to_bits(values)), expected)


# ---- order


def test_work_waits_for_its_own_stream_only(cuda, memory):
    a, b = filled(memory, [1, 2, 3]), memory.allocate(ROW)
    first, second = memory.stream(), memory.stream()
    with memory.on(first):
        memory.copy(b, a)()
    memory.synchronize(second)
    assert np.array_equal(np.frombuffer(cuda.bytes_at(b.pointer, 12), np.float32), [0, 0, 0])
    memory.synchronize(first)
    assert np.array_equal(np.frombuffer(cuda.bytes_at(b.pointer, 12), np.float32), [1, 2, 3])


def test_waiting_for_all_ends_the_work_of_every_stream(memory):
    a, b = filled(memory, [1, 2, 3]), memory.allocate(ROW)
    with memory.on(memory.stream()):
        memory.copy(b, a)()
    memory.synchronize()
    assert memory.read(b).tolist() == [1, 2, 3]


def test_the_current_stream_is_that_of_the_thread(memory):
    own, found = memory.stream(), []
    with memory.on(own):
        worker = threading.Thread(target=lambda: found.append(memory.current()))
        worker.start()
        worker.join()
        assert memory.current() is own
    assert found == [memory.current()] and found[0] is not own


@pytest.mark.parametrize(("wanted", "level"), [(0, 0), (1, -1), (5, -5), (99, -5), (-3, 0)])
def test_a_higher_priority_is_more_urgent_within_what_the_gpu_has(cuda, memory, wanted, level):
    stream = memory.stream(wanted)
    made = cuda.streams[stream.handle]
    assert made.priority == level and made.flags == cuda.cudaStreamNonBlocking


def test_an_error_of_earlier_work_comes_out_at_the_wait(cuda, memory):
    a, b = filled(memory, [1, 2, 3]), memory.allocate(ROW)
    memory.copy(b, a)()
    cuda._blocks.pop(a.pointer)  # as if a broken engine had destroyed it
    with pytest.raises(CudaError, match=r"waiting for a stream: an illegal memory access .*start it again"):
        memory.synchronize(memory.current())


# ---- graphs


def test_a_graph_replays_what_was_recorded_with_the_contents_of_now(cuda, memory):
    port, result, stream = memory.port(ROW), memory.allocate(ROW), memory.stream()
    calls = [port.upload, memory.copy(result, port.buffer)]
    graph = memory.capture(calls, stream)
    assert memory.read(result).tolist() == [0, 0, 0]  # recorded, not run
    for value in (1, 2):
        port.host[:] = value
        with memory.on(stream):
            graph()
        memory.synchronize(stream)
        assert memory.read(result).tolist() == [value] * 3
    assert graph.num_nodes == 2 and cuda.launches == [stream.handle] * 2
    assert len(cuda.graphs) == 0  # only the executable one is kept


def test_a_graph_is_launched_on_the_stream_that_is_current_then(cuda, memory):
    stream, other = memory.stream(), memory.stream()
    graph = memory.capture([memory.copy(memory.allocate(ROW), filled(memory, [1, 2, 3]))], stream)
    with memory.on(other):
        graph()
    assert cuda.launches == [other.handle]


def allocating(memory):
    return lambda: memory.allocate(ROW)


def waiting(memory):
    return lambda: memory.synchronize(memory.current())


def waiting_for_all(memory):
    return memory.synchronize


@pytest.mark.parametrize("kind", [allocating, waiting, waiting_for_all])
def test_what_a_graph_cannot_hold_ends_the_capture_and_says_so(cuda, memory, kind):
    stream, good = memory.stream(), memory.copy(memory.allocate(ROW), filled(memory, [1, 2, 3]))
    before = cuda.live
    with pytest.raises(CaptureError, match="operation not permitted when stream is capturing"):
        memory.capture([good, kind(memory)], stream)
    usable_again(cuda, memory, stream, good, before)


def usable_again(cuda, memory, stream, good, before):
    assert cuda.live == before and cuda.last_error == cudaError_t.cudaSuccess
    with memory.on(stream):
        good()
    memory.synchronize(stream)
    assert memory.capture([good], stream).num_nodes == 1


def test_a_swallowed_error_is_found_when_the_capture_ends(cuda, memory):
    def careless():
        cuda.cudaMalloc(4)

    stream, good = memory.stream(), memory.copy(memory.allocate(ROW), filled(memory, [1, 2, 3]))
    before = cuda.live
    with pytest.raises(CaptureError, match="operation failed due to a previous error during capture"):
        memory.capture([good, careless], stream)
    usable_again(cuda, memory, stream, good, before)


@pytest.mark.parametrize(
    "function", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphGetNodes", "cudaGraphInstantiate", "cudaGraphUpload"]
)
def test_every_step_of_a_capture_may_fail(cuda, memory, function):
    stream, good = memory.stream(), memory.copy(memory.allocate(ROW), filled(memory, [1, 2, 3]))
    before = cuda.live
    cuda.failures[function] = cudaError_t.cudaErrorNotSupported
    with pytest.raises(CaptureError, match="operation not supported"):
        memory.capture([good], stream)
    cuda.failures.clear()
    gc.collect()
    usable_again(cuda, memory, stream, good, before)


def test_an_engines_own_exception_is_a_capture_error_and_an_interrupt_is_not(cuda, memory):
    def failing():
        raise RuntimeError("tactic needs a host sync")

    def interrupted():
        raise KeyboardInterrupt

    stream, good = memory.stream(), memory.copy(memory.allocate(ROW), filled(memory, [1, 2, 3]))
    before = cuda.live
    with pytest.raises(CaptureError, match="RuntimeError: tactic needs a host sync"):
        memory.capture([failing], stream)
    with pytest.raises(KeyboardInterrupt):
        memory.capture([good, interrupted], stream)
    usable_again(cuda, memory, stream, good, before)


def test_calls_that_work_on_another_stream_are_no_graph(memory):
    stream, other = memory.stream(), memory.stream()
    copy = memory.copy(memory.allocate(ROW), filled(memory, [1, 2, 3]))

    def elsewhere():
        with memory.on(other):
            copy()

    with pytest.raises(CaptureError, match="issued no work on the captured stream"):
        memory.capture([elsewhere], stream)


def test_garbage_is_not_collected_while_a_capture_records(memory):
    """A collection could free GPU memory, which would end the capture."""
    seen = []
    copy = memory.copy(memory.allocate(ROW), filled(memory, [1, 2, 3]))
    memory.capture([copy, lambda: seen.append(gc.isenabled())], memory.stream())
    assert seen == [False] and gc.isenabled()


def test_a_port_of_bfloat16_moves_but_is_in_no_graph(cuda, memory):
    port = memory.port(TensorSpec("x", (2,), "bfloat16"))
    port.host[:] = [1 + 2.0**-8, -3]
    port.upload()
    assert memory.read(port.buffer).tolist() == [1, -3]
    port.host[:] = 0
    port.download()
    assert port.host.tolist() == [1, -3]
    for call in (port.upload, port.download):
        with pytest.raises(CaptureError, match=r"bfloat16 and rounded on the host, which a graph cannot hold\. Use float32"):
            memory.capture([call], memory.stream())


# ---- the fake and the real module


def used_names():
    """Attributes of cudart in the source: every `<something>.cuda...` except our own modules."""
    nodes = (node for path in SOURCES for node in ast.walk(ast.parse(path.read_text())))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and node.attr.startswith("cuda")}


def test_everything_that_is_used_is_in_the_fake():
    members = {name for kind in ENUMS for name in vars(FakeCudart)[kind].__members__}
    missing = {name for name in used_names() if not hasattr(FakeCudart, name)} - members
    assert not missing and len(used_names()) > 25


ENUMS = ("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode", "cudaStreamCaptureStatus")
FUNCTIONS = sorted(name for name, value in vars(FakeCudart).items() if name.startswith("cuda") and inspect.isfunction(value))


@pytest.fixture(scope="module")
def real():
    return pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings are not installed")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_fake_takes_the_parameters_of_the_real_function(real, name):
    parameters = list(inspect.signature(getattr(real, name)).parameters)
    assert list(inspect.signature(getattr(FakeCudart, name)).parameters)[1:] == parameters


def test_the_fake_has_the_numbers_and_words_of_the_real_module(real, cuda):
    for kind in ENUMS:
        for member in getattr(cuda, kind):
            assert int(getattr(getattr(real, kind), member.name)) == member.value, member
    for name in ("cudaStreamNonBlocking", "cudaHostAllocDefault"):
        assert getattr(cuda, name) == getattr(real, name)
    for member in cudaError_t:
        assert real.cudaGetErrorString(real.cudaError_t(member))[1] == cuda.cudaGetErrorString(member)[1]


def test_advice_is_given_for_errors_that_cuda_really_has(real):
    assert set(cuda_api._ADVICE) <= set(real.cudaError_t.__members__)


def test_the_properties_that_are_read_are_there(real):
    assert {"name", "major", "minor"} <= set(dir(real.cudaDeviceProp()))


ANSWERS = """
from cuda.bindings import runtime as rt
zeros = lambda f: [0] * sum(p.default is p.empty for p in inspect.signature(f).parameters.values())
given = {"cudaMemcpyAsync": [0, 0, 0, rt.cudaMemcpyKind.cudaMemcpyHostToDevice, 0],
         "cudaStreamBeginCapture": [0, rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal],
         "cudaGetErrorName": [rt.cudaError_t.cudaSuccess], "cudaGetErrorString": [rt.cudaError_t.cudaSuccess]}
print({n: len(getattr(rt, n)(*given.get(n, zeros(getattr(rt, n))))) for n in NAMES})
"""


def test_the_fake_answers_with_as_many_values_as_the_real_function(real, cuda):
    """In a process that sees no GPU the real functions fail, with answers of the same length."""
    code = f"import inspect; NAMES = {FUNCTIONS!r}\n{ANSWERS}"
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lengths = ast.literal_eval(done.stdout)
    found = {name: len(getattr(cuda, name)(*arguments)) for name, arguments in sample_calls(cuda)}
    assert found == lengths


def sample_calls(cuda):
    """(function, arguments that the fake takes): every function once, what destroys last."""
    stream, other = (cuda.cudaStreamCreateWithPriority(1, 0)[1] for _ in range(2))
    cuda.cudaStreamBeginCapture(other, 1)
    _, graph = cuda.cudaStreamEndCapture(other)
    _, executable = cuda.cudaGraphInstantiate(graph, 0)
    given = {
        "cudaSetDevice": [0], "cudaGetDeviceProperties": [0], "cudaGetErrorName": [0], "cudaGetErrorString": [0],
        "cudaMalloc": [1], "cudaHostAlloc": [1, 0], "cudaMemcpyAsync": [0, 0, 0, 1, stream], "cudaMemsetAsync": [0, 0, 0, stream],
        "cudaStreamCreateWithPriority": [1, 0], "cudaStreamSynchronize": [stream], "cudaStreamIsCapturing": [stream],
        "cudaStreamQuery": [stream],
        "cudaStreamBeginCapture": [other, 1], "cudaStreamEndCapture": [other], "cudaGraphGetNodes": [graph],
        "cudaGraphInstantiate": [graph, 0], "cudaGraphUpload": [executable, stream], "cudaGraphLaunch": [executable, stream],
    }  # fmt: skip
    last = {
        "cudaGraphDestroy": [graph], "cudaGraphExecDestroy": [executable], "cudaStreamDestroy": [stream], "cudaFree": [0],
        "cudaFreeHost": [0],
    }  # fmt: skip
    yield from given.items()
    yield from ((name, []) for name in FUNCTIONS if name not in given and name not in last)
    yield from last.items()


def test_a_machine_without_a_gpu_gets_a_reason_and_no_traceback(real):
    code = "from edgewam.runtime.cuda_api import gpu_support as s; r = s(); print(r.ok, r.reason)"
    done = subprocess.run([sys.executable, "-c", code], env={"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ":".join(sys.path)},
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("False") and "docker run --gpus all" in done.stdout

"""What every memory must do: zeros, exact round trips, views, copies and ports, and graphs that replay where there are any."""

import inspect
import sys

import numpy as np
import pytest

from edgewam.core.errors import ContractError
from edgewam.core.tensor_spec import DTYPE_BYTES, TensorSpec
from edgewam.runtime.cuda_api import gpu_support
from edgewam.runtime.cuda_memory import CudaMemory
from edgewam.runtime.memory import CaptureError, HostMemory, Memory, host_spec
from edgewam.runtime.torch_memory import TorchMemory
from tests.runtime.fake_cuda import FakeCudart

# what a memory refuses to hold; every other dtype of a TensorSpec it must
REFUSED = {"host": {"bfloat16", "float8_e4m3"}, "torch": set(), "torch on a GPU": set(), "cuda": {"float8_e4m3"}}
# exact in every dtype that takes fractions, float8 included
VALUES = {"float": [[0.5, -2.0, 3.0], [4.0, -0.25, 1.5]], "int": [[1, 2, 3], [120, 0, 5]], "bool": [[1, 0, 1], [0, 0, 1]]}


ON_A_GPU = ("torch on a GPU", "cuda on a GPU")


@pytest.fixture(params=["host", "torch", "cuda", *(pytest.param(name, marks=pytest.mark.gpu) for name in ON_A_GPU)])
def place(request, monkeypatch):
    """(name, memory).  "cuda" is our own memory: on the fake device, and on a real one where there is one."""
    if request.param == "host":
        return "host", HostMemory()
    if request.param in ON_A_GPU and not (support := gpu_support()).ok:
        pytest.skip(support.reason)
    if request.param.startswith("cuda"):
        if request.param == "cuda":
            monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", FakeCudart())
        return "cuda", CudaMemory()
    torch = pytest.importorskip("torch")
    if request.param in ON_A_GPU and not torch.cuda.is_available():
        pytest.skip("torch here is a build without CUDA")
    return request.param, TorchMemory("cuda" if request.param in ON_A_GPU else "cpu")


@pytest.fixture
def memory(place):
    return place[1]


def test_every_memory_has_everything_that_a_pipeline_may_ask_for(memory):
    wanted = {name for name, value in vars(Memory).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert wanted > {"allocate", "is_idle", "capture", "port"} and not [name for name in wanted if not hasattr(memory, name)]
    assert isinstance(memory.has_graphs, bool)


def test_a_stream_is_idle_when_nothing_waits_on_it(memory):
    stream = memory.stream()
    assert memory.is_idle(stream)
    source, target = filled(memory, spec_of()), memory.allocate(spec_of())
    with memory.on(stream):
        memory.copy(target, source)()
    memory.synchronize(stream)
    assert memory.is_idle(stream)
    np.testing.assert_array_equal(memory.read(target), array_of(spec_of()))


def array_of(spec):
    kind = "float" if "float" in spec.dtype else "bool" if spec.dtype == "bool" else "int"
    return np.array(VALUES[kind], host_spec(spec).dtype)


def filled(memory, spec):
    buffer = memory.allocate(spec)
    memory.write(buffer, array_of(spec))
    return buffer


def spec_of(dtype="float32", shape=(2, 3)):
    return TensorSpec("x", shape, dtype)


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_a_buffer_begins_as_zeros_and_gives_back_what_was_written(place, dtype):
    name, memory = place
    spec = spec_of(dtype)
    if dtype in REFUSED[name]:
        with pytest.raises(ContractError, match="'x'"):
            memory.allocate(spec)
        return
    buffer = memory.allocate(spec)
    assert tuple(buffer.shape) == spec.shape
    found = memory.read(buffer)
    host_spec(spec).check(found)
    assert not found.any()
    memory.write(buffer, array_of(spec))
    np.testing.assert_array_equal(memory.read(buffer), array_of(spec))
    memory.fill_zero(buffer)
    assert not memory.read(buffer).any()


@pytest.mark.parametrize("dtype", sorted(set(DTYPE_BYTES) - {"float8_e4m3"}))
def test_a_buffer_fits_its_spec(place, dtype):
    name, memory = place
    if dtype not in REFUSED[name]:
        spec_of(dtype).check(memory.allocate(spec_of(dtype)))


def test_bfloat16_is_rounded_half_to_even(place):
    name, memory = place
    if "bfloat16" in REFUSED[name]:
        pytest.skip("NumPy has no bfloat16")
    buffer = memory.allocate(spec_of("bfloat16", (3,)))
    memory.write(buffer, np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8 * 1.01], np.float32))
    assert memory.read(buffer).tolist() == [1, 1 + 2.0**-6, -1 - 2.0**-7]


def test_what_is_read_or_written_is_a_copy(memory):
    array, buffer = array_of(spec_of()), memory.allocate(spec_of())
    memory.write(buffer, array)
    array[:] = 9
    found = memory.read(buffer)
    found[:] = 9
    np.testing.assert_array_equal(memory.read(buffer), array_of(spec_of()))


def test_rows_and_a_row_are_views(memory):
    table = filled(memory, spec_of())
    last, row = memory.rows(table, 1, 2), memory.row(table, 1)
    assert tuple(last.shape) == (1, 3) and tuple(row.shape) == (3,)
    np.testing.assert_array_equal(memory.read(row), array_of(spec_of())[1])
    memory.write(row, np.full(3, 7, np.float32))
    np.testing.assert_array_equal(memory.read(table), [array_of(spec_of())[0], [7, 7, 7]])
    memory.fill_zero(last)
    assert not memory.read(table)[1].any() and memory.read(table)[0].any()


def test_a_row_of_scalars_is_a_buffer(memory):
    table = memory.allocate(spec_of(shape=(2,)))
    row = memory.row(table, 1)
    assert tuple(row.shape) == ()
    memory.write(row, np.array(5, np.float32))
    assert memory.read(table).tolist() == [0, 5]


def test_a_copy_copies_what_is_there_when_it_is_called(memory):
    source, target = memory.allocate(spec_of()), memory.allocate(spec_of())
    call = memory.copy(target, source)
    memory.write(source, array_of(spec_of()))
    assert not memory.read(target).any()
    call()
    memory.synchronize()
    np.testing.assert_array_equal(memory.read(target), array_of(spec_of()))


@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool", "int64", "bfloat16"])
def test_a_port_carries_to_the_buffer_and_back(place, dtype):
    name, memory = place
    spec = spec_of(dtype)
    if dtype in REFUSED[name]:
        pytest.skip(f"{name} has no {dtype}")
    way_in = memory.port(spec)
    host_spec(spec).check(way_in.host)
    way_in.host[...] = array_of(spec)
    move(memory, way_in.upload)
    np.testing.assert_array_equal(memory.read(way_in.buffer), array_of(spec))
    way_out = memory.port(spec, way_in.buffer)  # of a buffer that is there already
    move(memory, way_out.download)
    np.testing.assert_array_equal(way_out.host, array_of(spec))


def move(memory, call):
    if call is not None:
        call()
        memory.synchronize()


def test_work_on_a_stream_is_ordered_and_done_after_the_wait(memory):
    a, b, c = filled(memory, spec_of()), memory.allocate(spec_of()), memory.allocate(spec_of())
    stream = memory.stream(priority=1)
    with memory.on(stream):
        memory.copy(b, a)()
        memory.copy(c, b)()
    memory.synchronize(stream)
    np.testing.assert_array_equal(memory.read(c), array_of(spec_of()))


def test_a_graph_replays_its_calls_and_a_memory_without_graphs_says_so(memory):
    source, target, stream = memory.allocate(spec_of()), memory.allocate(spec_of()), memory.stream()
    call = memory.copy(target, source)
    if not memory.has_graphs:
        with pytest.raises(CaptureError, match="graphs"):
            memory.capture([call], stream)
        return
    replay = memory.capture([call], stream)
    assert not memory.read(target).any()
    for factor in (1, 2):
        memory.write(source, factor * array_of(spec_of()))
        with memory.on(stream):
            replay()
        memory.synchronize(stream)
        np.testing.assert_array_equal(memory.read(target), factor * array_of(spec_of()))

"""How a CUDA C++ kernel is launched, with a driver that only writes down what it is asked for."""

import ctypes

import pytest

from edgewam.core.errors import EdgewamError
from edgewam.kernels import cuda_source
from edgewam.kernels.cuda_source import CudaProgram, launcher

driver = pytest.importorskip("cuda.bindings.driver")
PROGRAM = CudaProgram("linear16", "linear16", {"S": 1}, threads=256, shared=65536)
DONE = driver.CUresult.CUDA_SUCCESS


@pytest.fixture
def asked(monkeypatch):
    calls = []

    def answer(name, *values):
        def call(*args):
            calls.append((name, *args))
            return (DONE, *values)

        monkeypatch.setattr(driver, name, call)

    def launch(config, function, parameters, extra):
        (structure,) = (ctypes.c_void_p * 1).from_address(parameters)
        calls.append(("launch", config, function, list((ctypes.c_uint64 * 3).from_address(structure))))
        return (DONE,)

    answer("cuModuleLoadData", "module")
    answer("cuModuleGetFunction", "function")
    answer("cuFuncSetAttribute")
    monkeypatch.setattr(driver, "cuLaunchKernelEx", launch)
    monkeypatch.setattr(cuda_source, "_built", lambda text, name, sm: (b"cubin", ""))
    cuda_source._loaded.cache_clear()
    yield calls
    cuda_source._loaded.cache_clear()


@pytest.mark.parametrize("dependent", [False, True])
def test_every_launch_is_the_same_but_for_the_stream(asked, dependent):
    launch = launcher(PROGRAM, 90, (16, 8), [11, 12, 13], dependent)
    seen = []
    for stream in (5, 6):
        launch(stream)
        _, config, function, addresses = asked[-1]
        grid, block = (config.gridDimX, config.gridDimY, config.gridDimZ), (config.blockDimX, config.blockDimY, config.blockDimZ)
        seen.append((grid, block, config.sharedMemBytes, int(config.hStream), function, addresses, config.numAttrs))
    assert seen == [((16, 8, 1), (256, 1, 1), 65536, stream, "function", [11, 12, 13], int(dependent)) for stream in (5, 6)]
    if dependent:
        (attribute,) = asked[-1][1].attrs
        assert attribute.id == driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        assert attribute.value.programmaticStreamSerializationAllowed == 1


def test_one_machine_code_is_loaded_once_and_may_use_its_memory(asked):
    for addresses in ([1, 2, 3], [4, 5, 6]):
        launcher(PROGRAM, 90, (1,), addresses, False)
    limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert asked == [
        ("cuModuleLoadData", b"cubin"),
        ("cuModuleGetFunction", "module", b"linear16"),
        ("cuFuncSetAttribute", "function", limit, 65536),
    ]


def test_what_the_driver_refuses_is_said(asked, monkeypatch):
    monkeypatch.setattr(driver, "cuModuleLoadData", lambda cubin: (driver.CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU,))
    with pytest.raises(EdgewamError, match="CUDA_ERROR_NO_BINARY_FOR_GPU"):
        launcher(PROGRAM, 90, (1,), [1, 2, 3], False)

"""CUDA's runtime API through cuda-python, without torch: every status is checked, and an error says what to do next.

It holds what is asked of the device as a whole; buffers, streams and graphs are in `cuda_memory` and `cuda_graph`.
Functions and their results: NVIDIA's CUDA runtime API reference, as `cuda.bindings.runtime` of cuda-bindings 12 and 13 gives it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from edgewam.core.errors import EdgewamError, MissingExtraError
from edgewam.runtime.engine import Support

INSTALL = "pip install 'cuda-bindings>=13,<14'"
_LOOK = "Look at 'nvidia-smi' and 'edgewam doctor'"
_NO_GPU = "In a container, start it with: docker run --gpus all ...; otherwise look at 'nvidia-smi' and CUDA_VISIBLE_DEVICES"
# error name of CUDA -> what the user can do about it
_ADVICE = {
    "cudaErrorNoDevice": _NO_GPU,
    "cudaErrorInvalidDevice": _LOOK,
    "cudaErrorInsufficientDriver": "Install or update the NVIDIA driver",
    "cudaErrorSystemDriverMismatch": "The driver was updated while it was loaded: restart the machine",
    "cudaErrorSystemNotReady": _LOOK,
    "cudaErrorMemoryAllocation": "Free memory on the GPU ('nvidia-smi' lists who holds it), or compile with a smaller plan",
    "cudaErrorDevicesUnavailable": "Another process holds the GPU alone: 'nvidia-smi' names it",
    "cudaErrorIllegalAddress": "The process cannot use the GPU any more: start it again, and report this",
    "cudaErrorLaunchFailure": "The process cannot use the GPU any more: start it again, and report this",
}


class CudaError(EdgewamError):
    """A call of CUDA that failed.  `name` is CUDA's name of the error."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class CudaDevice:
    """One GPU.  sm: compute capability, such as "sm_120".  driver and runtime: CUDA versions, such as (13, 0); the driver's
    is the newest that it serves.
    """

    name: str
    sm: str
    driver: tuple[int, int]
    runtime: tuple[int, int]


def load_cudart() -> Any:
    """The module `cuda.bindings.runtime`.

    Raises:
        MissingExtraError: not installed, or broken; says how to get it.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MissingExtraError(
            f"CUDA is reached through the package 'cuda-bindings', which cannot be imported: {error}. Install it with: {INSTALL}"
        ) from error


def checked(cudart: Any, answer: tuple[Any, ...], doing: str) -> Any:
    """The value of a call of `cudart`: None, one value or a tuple.  Use it as `checked(rt, rt.cudaMalloc(n), "allocating")`.

    Raises:
        CudaError: the status is not success; says what was being done, CUDA's own words and the next step.
    """
    status, *values = answer
    if status != cudart.cudaError_t.cudaSuccess:
        name, words = _words(cudart, status)
        raise CudaError(name, f"CUDA failed while {doing}: {words} ({name}). {_ADVICE.get(name, _LOOK)}.")
    return None if not values else values[0] if len(values) == 1 else tuple(values)


def gpu_support(device_index: int = 0) -> Support:
    """Whether a GPU of that index answers; otherwise why not and what to do.  Nothing is allocated."""
    try:
        cudart = load_cudart()
    except MissingExtraError as error:
        return Support(False, str(error))
    if reason := _driver_problem(cudart):
        return Support(False, reason)
    status, count = cudart.cudaGetDeviceCount()
    if status != cudart.cudaError_t.cudaSuccess:
        name, words = _words(cudart, status)
        return Support(False, f"no NVIDIA GPU answers: {words} ({name}). {_ADVICE.get(name, _LOOK)}")
    if not 0 <= device_index < count:
        return Support(False, f"there is no GPU {device_index}; CUDA finds {count}. {_NO_GPU if count == 0 else _LOOK}")
    return Support(True)


def read_device(cudart: Any, index: int) -> CudaDevice:
    """Facts of one GPU.

    Raises:
        CudaError: no such GPU.
    """
    found = checked(cudart, cudart.cudaGetDeviceProperties(index), f"reading the properties of GPU {index}")
    name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
    driver = checked(cudart, cudart.cudaDriverGetVersion(), "reading the driver's version")
    runtime = checked(cudart, cudart.cudaRuntimeGetVersion(), "reading the runtime's version")
    return CudaDevice(name.rstrip("\0"), f"sm_{found.major}{found.minor}", _version(driver), _version(runtime))


def _driver_problem(cudart: Any) -> str:
    """Why the driver does not serve these bindings, or ""."""
    status, number = cudart.cudaDriverGetVersion()
    if status != cudart.cudaError_t.cudaSuccess or not number:
        return f"no NVIDIA driver is loaded, or this process cannot reach it. {_NO_GPU}"
    driver, runtime = _version(number), _version(checked(cudart, cudart.cudaRuntimeGetVersion(), "reading the runtime's version"))
    if driver[0] >= runtime[0]:
        return ""
    return (
        f"the NVIDIA driver serves CUDA {driver[0]}.{driver[1]}, and the installed cuda-bindings need CUDA {runtime[0]}. "
        f"Update the driver, or take its bindings: pip install 'cuda-bindings>={driver[0]},<{driver[0] + 1}'"
    )


def _words(cudart: Any, status: Any) -> tuple[str, str]:
    """CUDA's name and description of an error."""
    name, text = (call(status)[1] for call in (cudart.cudaGetErrorName, cudart.cudaGetErrorString))
    return (name or b"unknown").decode(), (text or b"no description").decode()


def _version(number: int) -> tuple[int, int]:
    return number // 1000, number % 1000 // 10

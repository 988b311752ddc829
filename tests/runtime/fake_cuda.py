"""A CUDA runtime in host memory, with the functions of `cuda.bindings.runtime` that edgewam uses and its habits.

Faithful where a mistake would show on a device: work on a stream waits until somebody synchronises, streams do not know each
other, copies check direction and bounds, freed memory is an illegal address, and a capture records, forbids what CUDA forbids
and is invalidated by it.  `test_cuda_memory` compares names, parameters and numbers with the real module.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

ALIGNMENT = 256  # of what cudaMalloc returns


class cudaError_t(IntEnum):
    """Numbers as in the real header."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorNotSupported = 801
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


WORDS = {
    0: "no error", 1: "invalid argument", 2: "out of memory", 35: "CUDA driver version is insufficient for CUDA runtime version",
    100: "no CUDA-capable device is detected", 101: "invalid device ordinal", 400: "invalid resource handle",
    600: "device not ready",
    700: "an illegal memory access was encountered", 801: "operation not supported",
    900: "operation not permitted when stream is capturing", 901: "operation failed due to a previous error during capture",
}  # fmt: skip
SUCCESS = cudaError_t.cudaSuccess


class cudaMemcpyKind(IntEnum):
    """Directions."""

    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(IntEnum):
    """Who else is forbidden what."""

    cudaStreamCaptureModeThreadLocal = 1


class cudaStreamCaptureStatus(IntEnum):
    """State of a stream."""

    cudaStreamCaptureStatusNone = 0
    cudaStreamCaptureStatusActive = 1
    cudaStreamCaptureStatusInvalidated = 2


@dataclass(eq=False)
class Stream:
    """Work that waits, and what is being captured (None: nothing)."""

    priority: int
    flags: int
    waiting: list[Any] = field(default_factory=list)
    recorded: list[Any] | None = None
    invalid: bool = False


class FakeCudart:
    """Stands for the module.  Injected: `failures` (function name -> error it returns), `driver`, `gpus`, `room` in bytes."""

    cudaError_t, cudaMemcpyKind = cudaError_t, cudaMemcpyKind
    cudaStreamCaptureMode, cudaStreamCaptureStatus = cudaStreamCaptureMode, cudaStreamCaptureStatus
    cudaStreamNonBlocking, cudaHostAllocDefault = 1, 0

    def __init__(self) -> None:
        self.driver, self.runtime, self.gpus, self.room = 13000, 13050, 1, 1 << 30
        self.failures: dict[str, cudaError_t] = {}
        self.calls: list[str] = []
        self.devices: list[int] = []  # every cudaSetDevice
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Any]] = {}
        self.executables: dict[int, list[Any]] = {}
        self.launches: list[int] = []  # the stream of every graph launch
        self.last_error = SUCCESS
        self._blocks: dict[int, tuple[int, Any]] = {}  # device address -> size and its memory
        self._pinned: dict[int, tuple[int, Any]] = {}
        self._broken = False
        self._handles = 1000

    # ---- the device

    def cudaDriverGetVersion(self):
        return self._answer("cudaDriverGetVersion", self.driver)

    def cudaRuntimeGetVersion(self):
        return self._answer("cudaRuntimeGetVersion", self.runtime)

    def cudaGetDeviceCount(self):
        if self.driver < 1000 * (self.runtime // 1000):
            return cudaError_t.cudaErrorInsufficientDriver, None
        return self._answer("cudaGetDeviceCount", self.gpus) if self.gpus else (cudaError_t.cudaErrorNoDevice, None)

    def cudaSetDevice(self, device):
        self.devices.append(device)
        return self._answer("cudaSetDevice")

    def cudaGetDeviceProperties(self, device):
        return self._answer("cudaGetDeviceProperties", SimpleNamespace(name=b"NVIDIA GeForce RTX 5090", major=12, minor=0))

    def cudaGetErrorName(self, error):
        return SUCCESS, cudaError_t(error).name.encode()

    def cudaGetErrorString(self, error):
        return SUCCESS, WORDS[int(error)].encode()

    def cudaGetLastError(self):
        found, self.last_error = self.last_error, SUCCESS
        return (found,)

    def cudaDeviceSynchronize(self):
        if self._forbidden():
            return self._refuse()
        for handle in list(self.streams):
            self._run(self.streams[handle])
        return (cudaError_t.cudaErrorIllegalAddress,) if self._broken else self._answer("cudaDeviceSynchronize")

    # ---- memory

    def cudaMalloc(self, size):
        if self._forbidden():
            return self._refuse(None)
        if size > self.room - sum(length for length, _ in self._blocks.values()):
            return self._fail(cudaError_t.cudaErrorMemoryAllocation, None)
        status, pointer = self._answer("cudaMalloc", 0)
        if status == SUCCESS:
            memory = ctypes.create_string_buffer(b"\xa5" * size, size + ALIGNMENT)  # never zeros by luck
            pointer = -(-ctypes.addressof(memory) // ALIGNMENT) * ALIGNMENT
            self._blocks[pointer] = size, memory
        return status, pointer

    def cudaFree(self, devPtr):
        if self._forbidden():
            return self._refuse()
        self.cudaDeviceSynchronize()
        return self._answer("cudaFree") if self._blocks.pop(devPtr, None) else (cudaError_t.cudaErrorInvalidValue,)

    def cudaHostAlloc(self, size, flags):
        if self._forbidden():
            return self._refuse(None)
        memory = ctypes.create_string_buffer(b"\xa5" * size, size)
        pointer = ctypes.addressof(memory)
        status, pointer = self._answer("cudaHostAlloc", pointer)
        if status == SUCCESS:
            self._pinned[pointer] = size, memory
        return status, pointer

    def cudaFreeHost(self, ptr):
        return self._answer("cudaFreeHost") if self._pinned.pop(ptr, None) else (cudaError_t.cudaErrorInvalidValue,)

    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        to_device, from_device = {1: (True, False), 2: (False, True), 3: (True, True)}[int(kind)]
        if self._inside(dst, count) != to_device or self._inside(src, count) != from_device:
            return self._fail(cudaError_t.cudaErrorInvalidValue)

        def work():
            gone = (to_device and not self._inside(dst, count)) or (from_device and not self._inside(src, count))
            self._broken |= gone
            if not gone:
                ctypes.memmove(dst, src, count)

        return self.issue("cudaMemcpyAsync", stream, work)

    def cudaMemsetAsync(self, devPtr, value, count, stream):
        if not self._inside(devPtr, count):
            return self._fail(cudaError_t.cudaErrorInvalidValue)
        return self.issue("cudaMemsetAsync", stream, lambda: ctypes.memset(devPtr, value, count))

    # ---- streams

    def cudaDeviceGetStreamPriorityRange(self):
        status, least = self._answer("cudaDeviceGetStreamPriorityRange", 0)
        return status, least, -5

    def cudaStreamCreateWithPriority(self, flags, priority):
        status, handle = self._answer("cudaStreamCreateWithPriority", self._handle())
        if status == SUCCESS:
            self.streams[handle] = Stream(priority, flags)
        return status, handle

    def cudaStreamDestroy(self, stream):
        self._run(self.streams.pop(stream))  # CUDA lets the work finish
        return self._answer("cudaStreamDestroy")

    def cudaStreamSynchronize(self, stream):
        if stream not in self.streams:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        if self.streams[stream].recorded is not None:
            return self._refuse()
        self._run(self.streams[stream])
        return (cudaError_t.cudaErrorIllegalAddress,) if self._broken else self._answer("cudaStreamSynchronize")

    def cudaStreamQuery(self, stream):
        if stream not in self.streams:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        return (cudaError_t.cudaErrorNotReady,) if self.streams[stream].waiting else self._answer("cudaStreamQuery")

    # ---- graphs

    def cudaStreamIsCapturing(self, stream):
        held = self.streams[stream]
        return SUCCESS, cudaStreamCaptureStatus(0 if held.recorded is None else 2 if held.invalid else 1)

    def cudaStreamBeginCapture(self, stream, mode):
        answer = self._answer("cudaStreamBeginCapture")
        if answer[0] == SUCCESS:
            self.streams[stream].recorded = []
        return answer

    def cudaStreamEndCapture(self, stream):
        held = self.streams[stream]
        if held.recorded is None:
            return self._fail(cudaError_t.cudaErrorInvalidValue, None)
        recorded, invalid = held.recorded, held.invalid
        held.recorded, held.invalid = None, False
        if invalid:
            return self._fail(cudaError_t.cudaErrorStreamCaptureInvalidated, None)
        status, handle = self._answer("cudaStreamEndCapture", self._handle())
        if status == SUCCESS:
            self.graphs[handle] = recorded
        return status, handle

    def cudaGraphGetNodes(self, graph, numNodes=0):
        status, count = self._answer("cudaGraphGetNodes", len(self.graphs[graph]))
        return status, [], count

    def cudaGraphInstantiate(self, graph, flags):
        status, handle = self._answer("cudaGraphInstantiate", self._handle())
        if status == SUCCESS:
            self.executables[handle] = list(self.graphs[graph])
        return status, handle

    def cudaGraphDestroy(self, graph):
        del self.graphs[graph]
        return self._answer("cudaGraphDestroy")

    def cudaGraphExecDestroy(self, graphExec):
        del self.executables[graphExec]
        return self._answer("cudaGraphExecDestroy")

    def cudaGraphUpload(self, graphExec, stream):
        assert stream in self.streams
        return self._answer("cudaGraphUpload")

    def cudaGraphLaunch(self, graphExec, stream):
        self.launches.append(stream)
        nodes = self.executables[graphExec]
        return self.issue("cudaGraphLaunch", stream, lambda: [work() for work in nodes])

    # ---- what a library such as TensorRT does inside

    def issue(self, name, stream, work):
        """Put work on a stream, or into the graph that is captured there."""
        if stream not in self.streams:
            return self._fail(cudaError_t.cudaErrorInvalidResourceHandle)
        answer = self._answer(name)
        if answer[0] == SUCCESS:
            held = self.streams[stream]
            (held.waiting if held.recorded is None else held.recorded).append(work)
        return answer

    def bytes_at(self, pointer, size):
        """Memory of the device as a ctypes array; AssertionError outside of what is allocated."""
        assert self._inside(pointer, size), f"illegal address {pointer:#x}"
        return (ctypes.c_ubyte * size).from_address(pointer)

    @property
    def live(self):
        """Number of allocations and objects that were not given back: device, pinned, streams, graphs, executables."""
        return tuple(map(len, (self._blocks, self._pinned, self.streams, self.graphs, self.executables)))

    def _run(self, stream):
        waiting, stream.waiting = stream.waiting, []
        for work in waiting:
            work()

    def _inside(self, pointer, size):
        return any(start <= pointer and pointer + size <= start + length for start, (length, _) in self._blocks.items())

    def _capturing(self):
        return [stream for stream in self.streams.values() if stream.recorded is not None]

    def _forbidden(self):
        return bool(self._capturing())

    def _refuse(self, *values):
        for stream in self._capturing():
            stream.invalid = True
        return self._fail(cudaError_t.cudaErrorStreamCaptureUnsupported, *values)

    def _fail(self, error, *values):
        self.last_error = error
        return (error, *values)

    def _answer(self, name, *values):
        self.calls.append(name)
        if name in self.failures:
            return self._fail(self.failures[name], *(None for _ in values))
        return (SUCCESS, *values)

    def _handle(self):
        self._handles += 1
        return self._handles

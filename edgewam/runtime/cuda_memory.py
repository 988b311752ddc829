"""Buffers, streams and pinned ports on one NVIDIA GPU through cuda-python, so that a bundle runs there without torch.

The counterpart of `torch_memory` with nothing but NumPy and cuda-bindings.  Every buffer is allocated once and freed with its
last view.  There are no kernels here: what would need one (rounding to bfloat16) happens on the host.
"""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgewam.core.errors import ContractError, PluginError
from edgewam.core.tensor_spec import DTYPE_BYTES, TensorSpec
from edgewam.profiles.machine import read_gpu, read_nvidia
from edgewam.runtime import bfloat16
from edgewam.runtime.cuda_api import CudaDevice, checked, gpu_support, load_cudart, read_device
from edgewam.runtime.cuda_graph import CudaGraph, capture
from edgewam.runtime.cuda_port import pinned, rounding_port, stored_dtype
from edgewam.runtime.memory import Array, BoundCall, CaptureError, Port, host_spec


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """Contiguous memory on the GPU.  owner: the allocation that it is all or part of, freed after its last view."""

    memory: CudaMemory = field(repr=False)
    pointer: int
    shape: tuple[int, ...]
    dtype: str
    owner: object = field(repr=False)

    @property
    def size_bytes(self) -> int:
        """Bytes the array occupies."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    def is_contiguous(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True, eq=False)
class CudaStream:
    """A queue of work on the GPU, independent of all others."""

    handle: Any

    def __int__(self) -> int:
        """The address that other libraries take."""
        return int(self.handle)


class CudaMemory:
    """The memory and the streams of one GPU; see `memory.Memory`.

    A thread's current stream is its own; every thread begins with the memory's first stream.

    Raises:
        PluginError: no such GPU, no driver or no cuda-bindings; says what to do.
    """

    has_graphs = True

    def __init__(self, device_index: int = 0) -> None:
        support = gpu_support(device_index)
        if not support.ok:
            raise PluginError(f"GPU {device_index} cannot be used: {support.reason}.")
        self.index, self.rt = device_index, load_cudart()
        self._local = threading.local()
        self._select()
        self.device: CudaDevice = read_device(self.rt, device_index)
        self._first = self.stream()

    def device_facts(self) -> dict[str, str]:
        """See `Memory.device_facts`; the driver is what NVIDIA's tools or the kernel say, "" where neither does."""
        driver = read_gpu().get("driver") or read_nvidia()[0] or ""
        runtime = "CUDA {}.{}".format(*self.device.runtime)
        return {"name": self.device.name, "sm": self.device.sm, "driver": driver, "runtime": runtime}

    def allocate(self, spec: TensorSpec) -> DeviceArray:
        """See `Memory.allocate`; the address is a multiple of 256 bytes.

        Raises:
            ContractError: float8, which no stage has at its boundary.
            CudaError: out of memory.
        """
        if spec.dtype == "float8_e4m3":
            raise ContractError(f"'{spec.name}' is float8, which exists inside of engines only. Use bfloat16 at the boundary.")
        self.current()  # selects the device in this thread
        size = max(1, spec.size_bytes)
        pointer = int(checked(self.rt, self.rt.cudaMalloc(size), f"allocating {size} bytes for '{spec.name}'"))
        owner = _Owner()
        weakref.finalize(owner, self.rt.cudaFree, pointer)
        array = DeviceArray(self, pointer, spec.shape, spec.dtype, owner)
        self.fill_zero(array)
        return array

    def write(self, buffer: DeviceArray, array: Array) -> None:
        """See `Memory.write`; float32 is rounded half to even into a bfloat16 buffer."""
        _host_spec_of(buffer).check(array)
        stored = _to_stored(buffer.dtype, array)
        self._move(buffer.pointer, stored.ctypes.data, buffer.size_bytes, self.rt.cudaMemcpyKind.cudaMemcpyHostToDevice)
        self.synchronize(self.current())

    def read(self, buffer: DeviceArray) -> Array:
        """See `Memory.read`; bfloat16 comes as float32, exactly."""
        stored = np.empty(buffer.shape, stored_dtype(buffer.dtype))
        self._move(stored.ctypes.data, buffer.pointer, buffer.size_bytes, self.rt.cudaMemcpyKind.cudaMemcpyDeviceToHost)
        self.synchronize(self.current())
        return _from_stored(buffer.dtype, stored)

    def fill_zero(self, buffer: DeviceArray) -> None:
        """See `Memory.fill_zero`; done when it returns, so that it also holds for other streams."""
        stream = self.current()
        checked(self.rt, self.rt.cudaMemsetAsync(buffer.pointer, 0, buffer.size_bytes, stream.handle), "zeroing a buffer")
        self.synchronize(stream)

    def rows(self, buffer: DeviceArray, start: int, stop: int) -> DeviceArray:
        """See `Memory.rows`.

        Raises:
            ContractError: rows that the buffer does not have.
        """
        if not buffer.shape or not 0 <= start <= stop <= buffer.shape[0]:
            raise ContractError(f"A buffer of shape {list(buffer.shape)} has no rows {start}:{stop}.")
        shape = (stop - start, *buffer.shape[1:])
        pitch = math.prod(buffer.shape[1:]) * DTYPE_BYTES[buffer.dtype]
        return DeviceArray(self, buffer.pointer + start * pitch, shape, buffer.dtype, buffer.owner)

    def row(self, buffer: DeviceArray, index: int) -> DeviceArray:
        """See `Memory.row`."""
        one = self.rows(buffer, index, index + 1)
        return DeviceArray(self, one.pointer, one.shape[1:], one.dtype, one.owner)

    def copy(self, target: DeviceArray, source: DeviceArray) -> BoundCall:
        """See `Memory.copy`.

        Raises:
            ContractError: another shape or dtype.
        """
        TensorSpec("source", target.shape, target.dtype).check(source)
        kind = self.rt.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        return self._mover((target, source), target.pointer, source.pointer, target.size_bytes, kind)

    def port(self, spec: TensorSpec, buffer: DeviceArray | None = None) -> Port:
        """See `Memory.port`.  The host side is pinned.

        A bfloat16 port rounds on the host while it moves, which a graph cannot hold: capturing it raises CaptureError.
        """
        held = self.allocate(spec) if buffer is None else buffer
        spec.check(held)
        self.current()  # selects the device in this thread
        host, kinds = pinned(self.rt, spec.shape, stored_dtype(spec.dtype)), self.rt.cudaMemcpyKind
        address, size = host.ctypes.data, held.size_bytes
        upload = self._mover((held, host), held.pointer, address, size, kinds.cudaMemcpyHostToDevice)
        download = self._mover((held, host), address, held.pointer, size, kinds.cudaMemcpyDeviceToHost)
        port = Port(host, held, upload, download)
        return rounding_port(port, self._wait_outside_graphs) if spec.dtype == "bfloat16" else port

    def stream(self, priority: int = 0) -> CudaStream:
        """See `Memory.stream`; a priority beyond what the GPU offers is its nearest.  CUDA counts the other way."""
        self._select()
        least, greatest = checked(self.rt, self.rt.cudaDeviceGetStreamPriorityRange(), "reading the stream priorities")
        level = min(least, max(greatest, -priority))
        # non-blocking: the legacy default stream, which other libraries may use, must not order it
        answer = self.rt.cudaStreamCreateWithPriority(self.rt.cudaStreamNonBlocking, level)
        stream = CudaStream(checked(self.rt, answer, "making a stream"))
        weakref.finalize(stream, self.rt.cudaStreamDestroy, stream.handle)
        return stream

    def current(self) -> CudaStream:
        """The stream that the calling thread's work goes to."""
        stream: CudaStream | None = getattr(self._local, "stream", None)
        if stream is None:
            self._select()
            self._local.stream = stream = self._first
        return stream

    @contextlib.contextmanager
    def on(self, stream: CudaStream) -> Iterator[None]:
        """See `Memory.on`."""
        before = self.current()
        self._local.stream = stream
        try:
            yield
        finally:
            self._local.stream = before

    def synchronize(self, stream: CudaStream | None = None) -> None:
        """See `Memory.synchronize`.  Errors of work that was issued before may only come out here."""
        if stream is None:
            self.current()
            checked(self.rt, self.rt.cudaDeviceSynchronize(), "waiting for the GPU")
        else:
            checked(self.rt, self.rt.cudaStreamSynchronize(stream.handle), "waiting for a stream")

    def is_idle(self, stream: CudaStream) -> bool:
        """See `Memory.is_idle`."""
        answer = self.rt.cudaStreamQuery(stream.handle)
        if answer[0] == self.rt.cudaError_t.cudaErrorNotReady:
            return False
        checked(self.rt, answer, "looking at a stream")
        return True

    def capture(self, calls: Sequence[BoundCall], stream: CudaStream) -> CudaGraph:
        """See `Memory.capture`.  Every call must have run once before: an engine's first run does what no graph can hold."""
        with self.on(stream):
            return capture(self.rt, calls, stream.handle, lambda: self.current().handle)

    def _select(self) -> None:
        checked(self.rt, self.rt.cudaSetDevice(self.index), f"selecting GPU {self.index}")

    def _move(self, target: int, source: int, size: int, kind: Any) -> None:
        handle = self.current().handle
        checked(self.rt, self.rt.cudaMemcpyAsync(target, source, size, kind, handle), f"copying {size} bytes")

    def _mover(self, kept: tuple[object, ...], target: int, source: int, size: int, kind: Any) -> BoundCall:
        def call(kept: object = kept) -> None:  # addresses alone would not keep the memory alive
            self._move(target, source, size, kind)

        return call

    def _wait_outside_graphs(self) -> None:
        stream = self.current()
        status = checked(self.rt, self.rt.cudaStreamIsCapturing(stream.handle), "looking whether a stream is captured")
        if status != self.rt.cudaStreamCaptureStatus.cudaStreamCaptureStatusNone:
            raise CaptureError(
                "a program input or output is bfloat16 and rounded on the host, which a graph cannot hold. Use float32 at the "
                "programs' boundary"
            )
        self.synchronize(stream)


class _Owner:
    """Stands for one allocation; `weakref.finalize` frees it."""


def _host_spec_of(buffer: DeviceArray) -> TensorSpec:
    return host_spec(TensorSpec("array", buffer.shape, buffer.dtype))


def _to_stored(dtype: str, array: Array) -> Array:
    return bfloat16.to_bits(array) if dtype == "bfloat16" else np.ascontiguousarray(array)


def _from_stored(dtype: str, stored: Array) -> Array:
    return bfloat16.from_bits(stored) if dtype == "bfloat16" else stored

"""Where a pipeline's buffers live and how work on them is ordered: the seam between the pipeline and a device.

`HostMemory` is NumPy and runs everything at once; `torch_memory` and `cuda_memory` put the same calls on CUDA streams and
capture them as graphs.  NumPy has no bfloat16: on the host such a tensor is float32, exact one way and rounded the other.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import ContractError, EdgewamError
from edgewam.core.tensor_spec import TensorSpec

Array = npt.NDArray[Any]
Buffer = Any  # has .shape and .dtype; otherwise only its memory knows what it is
Stream = Any
BoundCall = Callable[[], None]


class CaptureError(EdgewamError):
    """Calls that cannot become one replayable graph; the message says why."""


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """No garbage collection while a graph is captured: what it frees may call CUDA, which ends the capture."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(frozen=True)
class Port:
    """A tensor that crosses between host and device.  `host` is pinned where that helps, and the buffer itself on the host.

    upload and download move it, in the order of the current stream; None where nothing has to move.
    """

    host: Array
    buffer: Buffer
    upload: BoundCall | None = None
    download: BoundCall | None = None


class Memory(Protocol):
    """One place where buffers live.  Calls that move or compute are ordered on the stream that is current when they run.

    has_graphs: whether `capture` can work at all.
    """

    has_graphs: bool

    def device_facts(self) -> dict[str, str]:
        """What a bundle must match: `name`, `sm`, `driver` and the exact `runtime` versions; empty on the processor."""

    def allocate(self, spec: TensorSpec) -> Buffer:
        """Zeros of a spec."""

    def write(self, buffer: Buffer, array: Array) -> None:
        """Host to buffer, done when it returns; the array has `host_spec` of the buffer."""

    def read(self, buffer: Buffer) -> Array:
        """A copy of the buffer on the host, done when it returns."""

    def fill_zero(self, buffer: Buffer) -> None:
        """Zero a buffer."""

    def rows(self, buffer: Buffer, start: int, stop: int) -> Buffer:
        """View of rows along the first axis."""

    def row(self, buffer: Buffer, index: int) -> Buffer:
        """View of one row, without the first axis."""

    def copy(self, target: Buffer, source: Buffer) -> BoundCall:
        """The call that copies between buffers of one shape and dtype."""

    def port(self, spec: TensorSpec, buffer: Buffer | None = None) -> Port:
        """A port to a buffer of this spec, or to a new one."""

    def stream(self, priority: int = 0) -> Stream:
        """A queue of work; a higher priority is more urgent."""

    def on(self, stream: Stream) -> AbstractContextManager[None]:
        """Make a stream the current one."""

    def synchronize(self, stream: Stream | None = None) -> None:
        """Wait for the work of a stream, or of all."""

    def is_idle(self, stream: Stream) -> bool:
        """Whether a stream has no work left, without waiting."""

    def capture(self, calls: Sequence[BoundCall], stream: Stream) -> BoundCall:
        """One replayable graph of the calls, which are issued but not run; it is launched on the current stream.

        Raises:
            CaptureError: this memory has no graphs, or the calls do not fit into one.
        """


def host_spec(spec: TensorSpec) -> TensorSpec:
    """The spec of a tensor while it is on the host: float32 for what NumPy lacks."""
    return replace(spec, dtype="float32") if spec.dtype in ("bfloat16", "float8_e4m3") else spec


class HostMemory:
    """NumPy arrays.  Every call is done when it returns, so there is one stream and nothing to capture."""

    has_graphs = False

    def device_facts(self) -> dict[str, str]:
        """See `Memory.device_facts`."""
        return {}

    def allocate(self, spec: TensorSpec) -> Array:
        """See `Memory.allocate`.

        Raises:
            ContractError: bfloat16 or float8, which NumPy does not have.
        """
        # by name: another package may have taught NumPy a bfloat16 that no engine here can bind
        if host_spec(spec) != spec:
            raise ContractError(
                f"Host buffers cannot hold '{spec.name}' of dtype {spec.dtype}. Use float32 at the boundary, or a backend "
                "that keeps its buffers elsewhere: eager, inductor, tensorrt."
            )
        return np.zeros(spec.shape, np.dtype(spec.dtype))

    def write(self, buffer: Array, array: Array) -> None:
        """See `Memory.write`."""
        np.copyto(buffer, array)

    def read(self, buffer: Array) -> Array:
        """See `Memory.read`."""
        return buffer.copy()

    def fill_zero(self, buffer: Array) -> None:
        """See `Memory.fill_zero`."""
        buffer.fill(0)

    def rows(self, buffer: Array, start: int, stop: int) -> Array:
        """See `Memory.rows`."""
        return buffer[start:stop]

    def row(self, buffer: Array, index: int) -> Array:
        """See `Memory.row`; a scalar row stays an array."""
        return buffer[index : index + 1].reshape(buffer.shape[1:])

    def copy(self, target: Array, source: Array) -> BoundCall:
        """See `Memory.copy`."""

        def call() -> None:
            np.copyto(target, source)

        return call

    def port(self, spec: TensorSpec, buffer: Array | None = None) -> Port:
        """See `Memory.port`."""
        array = self.allocate(spec) if buffer is None else buffer
        return Port(array, array)

    def stream(self, priority: int = 0) -> Stream:
        """See `Memory.stream`."""
        return None

    def on(self, stream: Stream) -> AbstractContextManager[None]:
        """See `Memory.on`."""
        return contextlib.nullcontext()

    def synchronize(self, stream: Stream | None = None) -> None:
        """Nothing is ever pending."""

    def is_idle(self, stream: Stream) -> bool:
        """See `Memory.is_idle`."""
        return True

    def capture(self, calls: Sequence[BoundCall], stream: Stream) -> BoundCall:
        """See `Memory.capture`."""
        raise CaptureError("the host runs calls one by one and has no graphs")

"""Buffers as torch tensors on one device: CUDA streams, pinned ports and CUDA graphs; on the CPU also what NumPy cannot hold.

For backends that run on torch anyway (`eager`, `inductor`).  torch is imported when a memory is made, not before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from edgewam.core.errors import EdgewamError, require
from edgewam.core.tensor_spec import TensorSpec
from edgewam.profiles.machine import read_gpu
from edgewam.runtime.memory import Array, BoundCall, CaptureError, Port, Stream, host_spec
from edgewam.runtime.torch_graph import capture_graph

Tensor = Any


class TorchMemory:
    """Tensors on `device` ("cpu", "cuda" or "cuda:<n>").

    Raises:
        EdgewamError: a CUDA device that torch does not find.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.torch = torch = require("torch", extra="train")
        try:
            self.device = torch.device(device)
        except RuntimeError as error:
            raise EdgewamError(f"Unknown device '{device}'. Available: cpu, cuda, cuda:<number>.") from error
        self.has_graphs = self.on_gpu = self.device.type == "cuda"
        if self.on_gpu and (self.device.index or 0) >= torch.cuda.device_count():
            raise EdgewamError(
                f"torch {torch.__version__} finds {torch.cuda.device_count()} CUDA devices, so '{device}' cannot be used. "
                "Install torch's CUDA build and look at 'edgewam doctor'."
            )
        if self.on_gpu:
            # float32 is what a stage computes in on purpose; cuDNN's default, TF32, is 2e-4 off on the image encoder
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    def device_facts(self) -> dict[str, str]:
        """See `Memory.device_facts`."""
        if not self.on_gpu:
            return {}
        major, minor = self.torch.cuda.get_device_capability(self.device)
        return {
            "name": self.torch.cuda.get_device_name(self.device),
            "sm": f"sm_{major}{minor}",
            "driver": read_gpu().get("driver", ""),
            "runtime": f"torch {self.torch.__version__}, CUDA {self.torch.version.cuda}",
        }

    def allocate(self, spec: TensorSpec) -> Tensor:
        """See `Memory.allocate`."""
        dtype = getattr(self.torch, spec.torch_dtype)
        return self.torch.zeros(spec.shape, dtype=dtype, device=self.device)

    def write(self, buffer: Tensor, array: Array) -> None:
        """See `Memory.write`; torch rounds to bfloat16 half to even."""
        buffer.copy_(self.torch.from_numpy(array.copy()))
        self.synchronize()

    def read(self, buffer: Tensor) -> Array:
        """See `Memory.read`."""
        tensor = buffer.detach().to("cpu", copy=True)
        wide = tensor.float() if tensor.dtype in (self.torch.bfloat16, self.torch.float8_e4m3fn) else tensor
        array: Array = wide.numpy()
        return array

    def fill_zero(self, buffer: Tensor) -> None:
        """See `Memory.fill_zero`."""
        buffer.zero_()

    def rows(self, buffer: Tensor, start: int, stop: int) -> Tensor:
        """See `Memory.rows`."""
        return buffer[start:stop]

    def row(self, buffer: Tensor, index: int) -> Tensor:
        """See `Memory.row`."""
        return buffer[index]

    def copy(self, target: Tensor, source: Tensor) -> BoundCall:
        """See `Memory.copy`."""

        def call() -> None:
            target.copy_(source, non_blocking=True)

        return call

    def port(self, spec: TensorSpec, buffer: Tensor | None = None) -> Port:
        """See `Memory.port`; page-locked on the host for a GPU."""
        held = self.allocate(spec) if buffer is None else buffer
        wide = host_spec(spec)
        if not self.on_gpu and wide == spec:
            return Port(held.numpy(), held)
        host = self.torch.zeros(wide.shape, dtype=getattr(self.torch, wide.dtype), pin_memory=self.on_gpu)
        return Port(host.numpy(), held, self.copy(held, host), self.copy(host, held))

    def stream(self, priority: int = 0) -> Stream:
        """See `Memory.stream`; CUDA counts the other way."""
        return self.torch.cuda.Stream(self.device, priority=-priority) if self.on_gpu else None

    def on(self, stream: Stream) -> AbstractContextManager[None]:
        """See `Memory.on`."""
        return self.torch.cuda.stream(stream) if self.on_gpu else contextlib.nullcontext()

    def synchronize(self, stream: Stream | None = None) -> None:
        """See `Memory.synchronize`."""
        if self.on_gpu:
            if stream is None:
                self.torch.cuda.synchronize(self.device)
            else:
                stream.synchronize()

    def is_idle(self, stream: Stream) -> bool:
        """See `Memory.is_idle`."""
        return not self.on_gpu or bool(stream.query())

    def capture(self, calls: Sequence[BoundCall], stream: Stream) -> BoundCall:
        """See `Memory.capture`."""
        if not self.on_gpu:
            raise CaptureError("torch has CUDA graphs only, and this is its CPU device")
        return capture_graph(self.torch, self.device, calls, stream)

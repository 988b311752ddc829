"""One launch of a kernel, Triton's or CUDA C++: tensors, constants, grid.  Binding it and compiling it ahead of time start here.

Dependent launch (sm_90 and newer): a kernel may start when every block of the one in front has called `gdc_launch_dependents`.
Our kernels call it after their own `gdc_wait`, so whatever runs before `gdc_wait` sees everything that was written before the
kernel directly in front, and nothing that this one writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgewam.kernels.cuda_source import CudaProgram, build_cuda, launcher
from edgewam.kernels.program import Program
from edgewam.kernels.source import source
from edgewam.kernels.target import Target
from edgewam.kernels.variant import Variant

POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
}


@dataclass(frozen=True)
class Launch:
    """A kernel `function` of the source file `source`; tensors and constants by the names of its parameters.

    The kernel has a constant DEPENDENT, which is set here.
    """

    source: str
    function: str
    tensors: Mapping[str, Tensor]
    constants: Mapping[str, Any]
    grid: tuple[int, ...]
    variant: Variant
    target: Target

    @property
    def is_dependent(self) -> bool:
        """Whether the kernel may start before the one in front of it has ended."""
        return self.variant.dependent and self.target.has_dependent_launch

    def bind(self) -> Callable[[], None]:
        """A function that launches it on the current stream; it keeps the tensors alive."""
        kernel, arguments = self._kernel[self.grid], self._arguments()

        def launch() -> None:
            kernel(**arguments)

        return launch

    def compile(self) -> None:
        """Compile it for the current card as its first launch would, and do not launch it; any thread may."""
        self._kernel.warmup(**self._arguments(), grid=self.grid)

    def program(self) -> Program:
        """What is compiled ahead of time; needs only the tensors' dtypes."""
        signature = {name: POINTERS[tensor.dtype] for name, tensor in self.tensors.items()}
        constants = {**self.constants, "DEPENDENT": self.is_dependent}
        variant = self.variant
        return Program(self.source, self.function, signature, constants, variant.warps, variant.stages, self.is_dependent)

    @property
    def _kernel(self) -> Any:
        return getattr(source(self.source, self.target.interpreted), self.function)

    def _arguments(self) -> dict[str, Any]:
        program = self.program()
        return {**self.tensors, **program.constants, **program.options}


@dataclass(frozen=True)
class CudaLaunch:
    """A CUDA C++ kernel with its numbers.  tensors: in the order of its addresses, None for one that it has no use for."""

    made: CudaProgram
    tensors: Sequence[Tensor | None]
    grid: tuple[int, ...]
    dependent: bool
    target: Target

    def bind(self) -> Callable[[], None]:
        """A function that launches it on the current stream; it keeps the tensors alive."""
        device = next(tensor.device for tensor in self.tensors if tensor is not None)
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in self.tensors]
        launch = launcher(self.made, self.target.sm, self.grid, addresses, self.dependent)

        def run(_kept: object = self.tensors) -> None:
            launch(torch.cuda.current_stream(device).cuda_stream)

        return run

    def compile(self) -> None:
        """Compile it, so that binding it finds it compiled; any thread may."""
        build_cuda(self.made, self.target.sm)

    def program(self) -> CudaProgram:
        """What is compiled ahead of time."""
        return self.made

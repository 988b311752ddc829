"""Compilation of kernels ahead of time, for a GPU that need not be there: Triton sources here, CUDA C++ through `cuda_source`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgewam.core.errors import ContractError, require
from edgewam.kernels.cubin import Compiled, products, resources
from edgewam.kernels.cuda_source import CudaProgram, compile_cuda
from edgewam.kernels.source import source

_ALIGNED = 16  # what Triton makes of a pointer or a number that is divisible by 16 when it compiles at the launch


@dataclass(frozen=True)
class Program:
    """A Triton kernel with its types and constants.

    source: file under `kernels/sources`, or another package's module.  function: its kernel.
    signature: argument -> type: "*bf16", "*fp32", "*fp8e4nv", "*i8", "*u8", "i32", "fp32", ...  Pointers are taken as divisible
    by 16 bytes, as PyTorch's allocations are; "*fp32:1" is not, and "i32:16" is a number that is divisible by 16.
    constants: argument -> value, of every argument that the signature leaves out.
    dependent: see `edgewam.kernels.launch`.
    """

    source: str
    function: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    warps: int = 4
    stages: int = 3
    dependent: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Of Triton's compiler.  Fused products and sums are said, since their default is about to change."""
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        return {**options, "launch_pdl": True} if self.dependent else options


def compile_program(program: Program | CudaProgram, sm: int) -> Compiled:
    """Machine code for one kind of GPU, `sm` 89, 90, 110, ...; where the architecture has own features (sm_90a), with them.

    Raises:
        MissingExtraError: Triton, or for CUDA C++ its compiler, is not installed.
        ContractError: an argument of the kernel that the program says nothing about, or the reverse.
    """
    if isinstance(program, CudaProgram):
        return compile_cuda(program, sm)
    triton = require("triton", extra="kernels")
    compiler = require("triton.compiler", extra="kernels")
    targets = require("triton.backends.compiler", extra="kernels")
    kernel = getattr(source(program.source, interpreted=False), program.function)
    names = kernel.arg_names
    said = {**program.constants, **program.signature}
    if set(names) != set(said) or len(said) != len(program.constants) + len(program.signature):
        raise ContractError(
            f"The program of {program.source}.{program.function} names every argument once, in its signature or as a constant. "
            f"Missing: {sorted(set(names) - set(said)) or 'none'}; unknown: {sorted(set(said) - set(names)) or 'none'}."
        )
    signature, attributes = {}, {}
    for index, name in enumerate(names):
        kind, _, divisor = program.signature.get(name, "constexpr").partition(":")
        signature[name] = kind
        if int(divisor or (_ALIGNED if kind.startswith("*") else 1)) % _ALIGNED == 0:
            attributes[(index,)] = [["tt.divisibility", _ALIGNED]]
    made = triton.compile(
        compiler.ASTSource(kernel, signature, dict(program.constants), attributes),
        target=targets.GPUTarget("cuda", sm, 32),
        options=program.options,
    )
    cubin, ptx = made.asm["cubin"], made.asm["ptx"]
    registers, spills = resources(cubin)
    return Compiled(cubin, ptx, registers, spills, made.metadata.shared, products(ptx))

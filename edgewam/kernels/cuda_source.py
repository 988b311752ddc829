"""CUDA C++ kernels: compiled by NVRTC for a GPU that need not be there, loaded and launched through the driver where one is.

A kernel is one file under `kernels/cuda`, put behind `instructions.cuh` (PTX in functions, and no header of the toolkit, which
NVRTC's package does not bring).  Everything about a call is a number defined at compilation; its one argument is a structure of
addresses.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewam.core.errors import EdgewamError, require
from edgewam.kernels.cubin import Compiled, machine_code, products

_FOLDER = Path(__file__).parent / "cuda"
_INSTRUCTIONS = "instructions.cuh"


@dataclass(frozen=True)
class CudaProgram:
    """A kernel of `kernels/cuda/<source>.cu` with the numbers it is compiled for.

    threads: of a block.  shared: bytes of shared memory a block asks for at its launch.
    """

    source: str
    function: str
    defines: Mapping[str, int]
    threads: int
    shared: int


def text_of(program: CudaProgram, instructions: str | None = None) -> str:
    """The whole source of a program.  instructions: what stands for `instructions.cuh`, for a proof on a processor."""
    defines = "".join(f"#define {name} {int(value)}\n" for name, value in program.defines.items())
    if instructions is None:
        instructions = (_FOLDER / _INSTRUCTIONS).read_text()
    return defines + instructions + (_FOLDER / f"{program.source}.cu").read_text()


def architecture(sm: int) -> str:
    """The name of a kind of GPU, with its own features where it has some."""
    return f"sm_{sm}a" if sm >= 90 else f"sm_{sm}"


def compile_cuda(program: CudaProgram, sm: int) -> Compiled:
    """Machine code of a program for one kind of GPU; `mnemonics` are those of the machine code.

    Raises:
        MissingExtraError: NVRTC or its bindings are not installed.
        EdgewamError: what the compiler complains about.
    """
    cubin, log = build_cuda(program, sm)
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", log)]
    local = [int(number) for number in re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", log)]
    if not registers:
        raise EdgewamError(
            f"NVRTC told no registers of {program.source}.cu for {architecture(sm)}: {log[:300]!r}. Use NVRTC 13.0."
        )
    return Compiled(cubin, "", max(registers), max(local, default=0), program.shared, products(machine_code(cubin)))


def build_cuda(program: CudaProgram, sm: int) -> tuple[bytes, str]:
    """Machine code of a program and what the assembler says about it; kept, so that `launcher` does not compile it again.

    Raises:
        MissingExtraError, EdgewamError: as `compile_cuda`.
    """
    return _built(text_of(program), f"{program.source}.cu", sm)


def launcher(
    program: CudaProgram, sm: int, grid: Sequence[int], addresses: Sequence[int], dependent: bool
) -> Callable[[int], None]:
    """A function that launches the program on a stream of the current device, every time with the same addresses.

    dependent: it may start before the kernel in front of it has ended (the kernel itself waits where it must).

    Raises:
        EdgewamError: the driver refuses the machine code or the shared memory.
    """
    driver = require("cuda.bindings.driver", extra="kernels")
    function = _loaded(text_of(program), program.source, program.function, program.shared, sm)
    structure = (ctypes.c_uint64 * len(addresses))(*addresses)
    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(structure))
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = (*grid, *[1] * (3 - len(grid)))
    config.blockDimX, config.blockDimY, config.blockDimZ = program.threads, 1, 1
    config.sharedMemBytes = program.shared
    if dependent:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        config.attrs, config.numAttrs = [attribute], 1

    def launch(stream: int, _kept: Any = structure) -> None:
        config.hStream = stream
        _checked(driver.cuLaunchKernelEx(config, function, ctypes.addressof(parameters), 0), program.source)

    return launch


@functools.lru_cache(maxsize=256)
def _built(text: str, name: str, sm: int) -> tuple[bytes, str]:
    """Machine code, and what the assembler says about it."""
    nvrtc = require("cuda.bindings.nvrtc", extra="kernels")
    _, program = nvrtc.nvrtcCreateProgram(text.encode(), name.encode(), 0, [], [])
    options = [f"--gpu-architecture={architecture(sm)}".encode(), b"--std=c++17", b"--ptxas-options=-v"]
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = bytearray(nvrtc.nvrtcGetProgramLogSize(program)[1])
        nvrtc.nvrtcGetProgramLog(program, log)
        said = log.decode(errors="replace").strip("\0\n ")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise EdgewamError(
                f"NVRTC cannot compile {name} for {architecture(sm)} ({status.name}); use NVRTC 13.0. It says:\n{said}"
            )
        cubin = bytearray(nvrtc.nvrtcGetCUBINSize(program)[1])
        nvrtc.nvrtcGetCUBIN(program, cubin)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return bytes(cubin), said


@functools.lru_cache(maxsize=256)
def _loaded(text: str, name: str, function: str, shared: int, sm: int) -> Any:
    """The kernel in the current context, allowed to use its shared memory; modules stay loaded as long as the process."""
    driver = require("cuda.bindings.driver", extra="kernels")
    cubin, _ = _built(text, f"{name}.cu", sm)
    module = _checked(driver.cuModuleLoadData(cubin), name)
    kernel = _checked(driver.cuModuleGetFunction(module, function.encode()), name)
    limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _checked(driver.cuFuncSetAttribute(kernel, limit, shared), name)
    return kernel


def _checked(answer: tuple[Any, ...], name: str) -> Any:
    status, *values = answer
    if int(status) != 0:
        raise EdgewamError(f"The CUDA driver refused the kernel {name}.cu: {status.name}. Choose source 'triton' for this call.")
    return values[0] if values else None

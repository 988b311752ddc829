"""Every kernel at full size, compiled for four kinds of GPU that need not be there: spills, memory, matrix products."""

import re
from dataclasses import replace

import pytest
import torch

from edgewam.core import plugins
from edgewam.core.errors import ContractError
from edgewam.kernels.bound import kernel_of
from edgewam.kernels.cuda_source import CudaProgram
from edgewam.kernels.program import Program, compile_program
from edgewam.kernels.target import TARGETS
from tests.kernels.full_size import CASES

pytest.importorskip("triton", reason="needs triton: it compiles kernels")
torch.set_num_threads(1)

REGISTERS = 255  # what a thread may have at all; with spills forbidden, the limit that a tile must stay under
NO_PRODUCTS = {"context_write", "state_write"}  # they move and norm
# matrix products that must be there: FP8 and INT8 without conversions, where the hardware has them
PRODUCTS = {
    "fp8": {89: r"^mma\.sync.*e4m3", 90: r"^wgmma.*e4m3", 110: r"^tcgen05\.mma.*f8f6f4", 120: r"^mma\.sync.*e4m3"},
    "int8": {89: r"^mma\.sync.*s8", 90: r"^(wgmma|mma\.sync).*s8", 110: r"^(tcgen05|mma\.sync).*(i8|s8)", 120: r"^mma\.sync.*s8"},
}
HALF_PRODUCT = r"^(mma\.sync|wgmma).*(bf16|f16)|^tcgen05\.mma.*kind::f16"
ALL = tuple(TARGETS)
QUICK = {  # what `make test` compiles: about 15 s of one core; `make soak` compiles the rest
    **dict.fromkeys(
        ("chunk_attention", "text_attention", "memory_attention", "router_attention", "context_write", "state_write"), ALL
    ),
    "down fp8": ALL,
    "down int8": (90,),
    "down int4_weights": (120,),
    "out bf16": (110,),
    "out fp8_weights": (90,),
    "delta down fp8": (120,),
    "head": (89,),
    "state": (90,),
}
QUICK_PAIRS = [(name, sm) for name, sms in QUICK.items() for sm in sms]


def prove(name, sm):
    """Compile what a case launches by default and look at it."""
    case, target = CASES[name], TARGETS[sm]
    kernel, tensors = kernel_of(case.op), case.meta()
    assert kernel.support(case.call, tensors, target) == ""
    variant = next(v for v in kernel.variants(case.call, tensors, target) if v.source == "triton")
    compiled = [compile_program(launch.program(), sm) for launch in kernel.launches(case.call, tensors, variant, target)]
    for one in compiled:
        assert one.spills == 0, (variant, one.registers)
        assert one.shared <= target.shared_memory, variant
        assert one.registers <= REGISTERS
    products = set().union(*(one.mnemonics for one in compiled))
    wanted = PRODUCTS.get(str(case.attributes.get("activations")), {}).get(sm, HALF_PRODUCT)
    if case.op not in NO_PRODUCTS and name != "state":  # one row: any way to multiply it will do
        assert any(re.search(wanted, product) for product in products), (variant, products)


@pytest.mark.parametrize(("name", "sm"), QUICK_PAIRS)
def test_it_fits_the_gpu(name, sm):
    prove(name, sm)


@pytest.mark.wide
@pytest.mark.parametrize(("name", "sm"), [(name, sm) for name in CASES for sm in ALL if (name, sm) not in QUICK_PAIRS])
def test_it_fits_the_gpu_in_every_format(name, sm):
    prove(name, sm)


def test_every_kernel_is_compiled_here():
    assert {CASES[name].op for name in QUICK} == set(plugins.names("kernel"))


def some_program():
    case = CASES["chunk_attention"]
    kernel, tensors = kernel_of(case.op), case.meta()
    variant = kernel.variants(case.call, tensors, TARGETS[89])[0]
    return kernel.launches(case.call, tensors, variant, TARGETS[89])[0].program()


def test_a_kernel_that_spills_is_found():
    """512 numbers do not fit the 255 registers of a thread, and the check must see it."""
    fits, spills = (
        compile_program(Program("tests.kernels.spilling", "centre", {"x": "*fp32"}, {"SIZE": 32 * numbers}, warps=1), 89)
        for numbers in (16, 512)
    )
    assert (fits.spills, fits.shared, fits.mnemonics) == (0, 0, frozenset()) and fits.registers < 64
    assert spills.spills > 0


def test_a_program_names_every_argument_once():
    program = some_program()
    lacking = replace(program, constants={name: value for name, value in program.constants.items() if name != "ROWS"})
    with pytest.raises(ContractError, match=r"Missing: \['ROWS'\]"):
        compile_program(lacking, 89)
    with pytest.raises(ContractError, match=r"unknown: \['COLOUR'\]"):
        compile_program(replace(program, constants={**program.constants, "COLOUR": 1}), 89)


def test_both_kinds_of_programs_compile_the_same_way():
    pytest.importorskip("cuda.bindings.nvrtc")
    case, target = CASES["down fp8"], TARGETS[90]
    kernel, tensors = kernel_of("linear"), case.meta()
    variant = next(v for v in kernel.variants(case.call, tensors, target) if v.source == "cuda")
    (launch,) = kernel.launches(case.call, tensors, variant, target)
    program = launch.program()
    assert isinstance(program, CudaProgram) and not isinstance(program, Program)
    assert compile_program(program, 90).spills == 0

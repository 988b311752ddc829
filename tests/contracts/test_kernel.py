"""What every kernel must do: give the reference's result at odd shapes, dtypes and strides, or say why not.

Then the reference runs.  Kernels are interpreted on the CPU, and run on a GPU where there is one.
"""

import pytest
import torch

from edgewam.core import plugins
from edgewam.kernels.bound import bind_call, kernel_of, reference_of, split
from edgewam.kernels.choices import Choices
from edgewam.kernels.reference import REFERENCES
from edgewam.kernels.target import TARGETS, target_of
from edgewam.kernels.variant import Variant
from tests.kernels.cases import CASES

pytest.importorskip("triton", reason="needs edgewam[kernels]")

NAMES = plugins.names("kernel")
KERNELS = [name for name in NAMES if name in REFERENCES]
OURS = [case for case in CASES if case.call.op in KERNELS]
FIRST = {case.call.op: case for case in reversed(OURS)}

# Relative to the result's largest value, by its dtype; sums in another order than PyTorch's.
TOLERANCES = {
    torch.float32: 2e-5,  # a few hundred terms, exp and tanh of another library
    torch.float16: 2e-3,  # 11 bits, rounded once
    torch.bfloat16: 1.6e-2,  # 8 bits, and Triton's interpreter cuts off instead of rounding (facts/platform.md 6)
}
HALF_INPUTS = 4e-3  # products and attention weights are rounded to a 16-bit dtype that the reference does not know of
CODE_INPUTS = 2e-2  # an input between two codes falls to either one after a norm in another order
TF32 = 2e-3  # on a GPU, where float32 products may be TF32


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    torch.set_num_threads(1)
    return request.param


def on(device, tensors):
    """The tensors there, with their strides; what was one tensor stays one."""
    made = {}
    for tensor in tensors.values():
        place = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        made[id(tensor)] = place.copy_(tensor)
    return {role: made[id(tensor)] for role, tensor in tensors.items()}


def tolerance_of(case, role, device):
    """See the constants."""
    found = TOLERANCES[case.operands[role].dtype]
    if any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in case.operands.values()):
        found = max(found, HALF_INPUTS, *(TOLERANCES[t.dtype] for t in case.operands.values() if t.dtype in TOLERANCES))
    if case.call.attributes.get("activations") in ("fp8", "int8"):
        found = max(found, CODE_INPUTS)
    return max(found, TF32) if device == "cuda" else found


def assert_close(case, device, found, expected):
    for role, result in expected.items():
        if role in found:
            assert torch.isfinite(found[role].float()).all(), f"{role} is not written everywhere"
            result = result.float()
            deviation = float((found[role].float() - result).abs().max() / result.abs().max())
            assert deviation <= tolerance_of(case, role, device), f"{role} is {deviation:.2e} off"


def test_every_kernel_has_a_reference_and_cases():
    for name in set(NAMES) - set(KERNELS):  # another source of the same op, which offers its variants through it
        assert any(name.startswith(f"{op}_") for op in KERNELS), "a kernel is defined by its reference"
    assert {case.call.op for case in CASES} == set(REFERENCES)


@pytest.mark.parametrize("case", OURS, ids=lambda case: case.name)
def test_a_kernel_gives_the_reference_or_says_why_not(case, device):
    target = target_of(device)
    operands = on(device, case.operands)
    reads, writes = split(case.call, operands)
    expected = reference_of(case.call.op)(**{role: t.clone() for role, t in reads.items()}, **case.call.attributes)
    bound = bind_call(case.call, operands, target, Choices.defaults(target))
    if bound.why:
        wide = any(tensor.dtype == torch.bfloat16 for tensor in operands.values())  # which the interpreter computes wrongly
        assert not case.must or (wide and device == "cpu"), f"refused: {bound.why}"
    else:
        assert isinstance(bound.variant, Variant)
    bound.run()
    assert_close(case, device, writes, expected)
    first = {role: tensor.clone() for role, tensor in writes.items()}
    for role, tensor in case.operands.items():
        operands[role].copy_(tensor)
    bound.run()  # counters and scratch are ready for the next call, and nothing depends on who comes first
    for role, tensor in writes.items():
        assert torch.equal(tensor, first[role]), role


@pytest.mark.parametrize("op", KERNELS)
def test_a_dtype_that_a_kernel_does_not_know_runs_as_the_reference(op):
    case, target = FIRST[op], target_of("cpu")
    operands = {role: tensor.double() if tensor.is_floating_point() else tensor for role, tensor in case.copy().items()}
    bound = bind_call(case.call, operands, target, Choices.defaults(target))
    assert len(bound.why.split()) > 2, "float64 is for proofs, and a sentence says that it is not taken"
    reads, writes = split(case.call, operands)
    expected = reference_of(op)(**reads, **case.call.attributes)
    bound.run()
    for role, tensor in writes.items():
        assert torch.equal(tensor, expected[role]), role


@pytest.mark.parametrize("op", KERNELS)
def test_a_last_axis_with_gaps_is_refused(op):
    case, target = FIRST[op], target_of("cpu")
    largest = max((role for role in case.operands), key=lambda role: case.operands[role].numel())
    tensor = case.operands[largest]
    spread = torch.zeros(*tensor.shape, 2, dtype=tensor.dtype)[..., 0]
    operands = {**case.copy(), largest: spread}
    assert kernel_of(op).support(case.call, operands, target)


@pytest.mark.parametrize("op", KERNELS)
def test_memory_of_another_device_is_refused(op):
    case = FIRST[op]
    assert kernel_of(op).support(case.call, case.copy(), TARGETS[90]), "these tensors lie on the CPU"


@pytest.mark.parametrize("op", KERNELS)
@pytest.mark.parametrize("sm", TARGETS)
def test_variants_are_plain_data_and_the_default_comes_first(op, sm):
    case = FIRST[op]
    meta = {role: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for role, t in case.operands.items()}
    variants = kernel_of(op).variants(case.call, meta, TARGETS[sm])
    assert variants and len(set(variants)) == len(variants)
    assert all(Variant.from_json(variant.to_json()) == variant for variant in variants)
    assert not any(variant.dependent for variant in variants) or TARGETS[sm].has_dependent_launch
    launches = kernel_of(op).launches(case.call, meta, variants[0], TARGETS[sm])
    assert launches and all(launch.program() for launch in launches), "without a GPU"

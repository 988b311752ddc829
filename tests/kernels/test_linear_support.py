"""What the kernel `linear` refuses and says, which variants it offers, and what it gives to ahead-of-time compilation."""

import pytest
import torch

pytest.importorskip("triton", reason="kernels need Triton: pip install 'edgewam[kernels]'")

from edgewam.kernels.ops import linear
from edgewam.kernels.ops.linear_problem import problem_of
from edgewam.kernels.program import compile_program
from edgewam.kernels.target import TARGETS, Target
from tests.kernels.linear_cases import INTERPRETER, call_of, packed, tensors_of

CARD = TARGETS[90]


def with_tensor(role, tensor):
    return lambda tensors: {**tensors, role: tensor}


def without(role):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name != role}


def transposed(tensors):
    return {**tensors, "weight": tensors["weight"].T.contiguous().T}


def overlapping(tensors):
    memory = torch.zeros(64 * 40)
    return {**tensors, "x": memory[: 7 * 48].view(7, 48), "y": memory[7 * 40 : 7 * 104].view(7, 64)}


@pytest.mark.parametrize(
    "change, attributes, said",
    [
        (without("y"), {}, "There is no tensor for 'y'"),
        (with_tensor("scale", torch.ones(48)), {}, "Of 'shift' and 'scale' only one"),
        (with_tensor("prefix", torch.ones(7, 64)), {}, "needs a 'mask'"),
        (with_tensor("routed", torch.ones(7, 64)), {}, "knows no 'routed'"),
        (with_tensor("x", torch.ones(7, 48, dtype=torch.float64)), {}, "'x' is float64, not float32 or float16 or bfloat16"),
        (with_tensor("mask", torch.ones(7)), {}, "'mask' is float32, not bool"),
        (with_tensor("squares", torch.ones(7, 1, dtype=torch.float16)), {}, "'squares' is float16, not float32"),
        (with_tensor("x", torch.ones(7, 48, dtype=torch.bfloat16)), {}, "computes bfloat16 wrongly"),
        (lambda tensors: tensors, {"activations": "bfloat16"}, "computes bfloat16 wrongly"),
        (lambda tensors: tensors, {"activations": "fp8"}, "weights of fp8 or int4, not float32"),
        (lambda tensors: packed(tensors, "fp8"), {"activations": "fp8"}, "need an 'input_scale'"),
        (lambda tensors: tensors, {"activations": "fp4"}, "cannot round activations to 'fp4'"),
        (with_tensor("x", torch.ones(2, 7, 48)), {}, "'x' has 3 axes and 'weight' 2"),
        (with_tensor("x", torch.ones(0, 48)), {}, "an axis has no elements"),
        (with_tensor("x", torch.ones(7, 47)), {}, "'weight' is [64, 48], not [64, 47]"),
        (with_tensor("bias", torch.ones(63)), {}, "'bias' is [63], not [64]"),
        (with_tensor("smooth", torch.ones(64)), {}, "'smooth' is [64], not [48]"),
        (with_tensor("weight_scale", torch.ones(64, 5)), {}, "groups that divide 48 inputs"),
        (with_tensor("weight_scale", torch.ones(64, 6)), {}, "Groups of 8 inputs"),
        (with_tensor("y", torch.ones(7, 64)), {"pairs": True}, "'y' is [7, 64], not [2, 7, 32]"),
        (lambda tensors: tensors, {"transposed": True}, "does not know the attribute 'transposed'"),
        (lambda tensors: tensors, {"activation": "relu"}, "knows no activation 'relu'"),
        (transposed, {}, "The last axis of 'weight' has stride 64, not 1"),
        (overlapping, {}, "which other blocks still read"),
    ],
)
def test_what_the_kernel_does_not_take_is_said(change, attributes, said):
    tensors = change(tensors_of(7, 48, 64))
    assert said in linear.support(call_of(tensors, **attributes), tensors, INTERPRETER)


@pytest.mark.parametrize(
    "made, attributes, said",
    [
        (tensors_of(7, 4097, 64), {"norm": True}, "wider than 4096"),
        ({**tensors_of(7, 48, 32), "squares": torch.ones(7, 0)}, {}, "which do not divide 32 outputs"),
        (tensors_of(7, 48, 64, "gate", pairs=True), {"pairs": True}, "Pairs are written without a 'gate'"),
        (tensors_of(7, 48, 64, "delta", layers=2), {}, "A batch of layers has no 'delta'"),
    ],
)
def test_what_does_not_go_together_is_said(made, attributes, said):
    assert said in linear.support(call_of(made, **attributes), made, INTERPRETER)


def test_tensors_on_another_device_are_refused_and_those_of_plans_are_not():
    tensors = tensors_of(7, 48, 64)
    assert "take tensors on cuda" in linear.support(call_of(tensors), tensors, CARD)
    plan = {role: tensor.to("meta") for role, tensor in tensors.items()}
    assert linear.support(call_of(plan), plan, CARD) == ""


def test_cards_without_fp8_are_told_so():
    tensors = {role: tensor.to("meta") for role, tensor in packed(tensors_of(7, 48, 64), "fp8").items()}
    assert "needs sm_89" in linear.support(call_of(tensors), tensors, Target(87, "Orin", 167936, 16))
    assert linear.support(call_of(tensors), tensors, TARGETS[89]) == ""


def full_size(rows, ins, outs, *roles, format="bfloat16", dtype=torch.bfloat16, layers=0):
    """Tensors without memory, of the residual stream's float32 where they are normed."""
    batch = (layers,) if layers else ()
    codes = {"fp8": torch.float8_e4m3fn, "int8": torch.int8, "int4": torch.uint8, "bfloat16": torch.bfloat16}[format]
    shapes = {
        "weight": ((*batch, outs, ins // 2 if format == "int4" else ins), codes),
        "weight_scale": ((*batch, outs) if format != "int4" else (*batch, outs, ins // 64), torch.float32),
        "bias": ((*batch, outs), torch.float32),
        "residual": ((*batch, rows, outs), torch.float32),
        "squares": ((*batch, rows, outs // 64), torch.float32),
        "gate": ((outs,), torch.float32),
        "input_scale": ((1,), torch.float32),
        "x": ((rows, ins), dtype),
        "y": ((*batch, rows, outs), torch.float32 if "residual" in roles else torch.bfloat16),
    }
    names = ["x", "weight", "y", *roles, *(["weight_scale"] if format != "bfloat16" else [])]
    made = {name: shapes.get(name, ((ins,), torch.float32)) for name in names}
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in made.items()}


QKV = ("scale", "shift", "bias", "squares")
CALLS = {
    "qkv": (full_size(16, 1024, 9216, *QKV, dtype=torch.float32), {"norm": True, "activations": "bfloat16"}),
    "down": (full_size(16, 4096, 1024, "bias", "gate", "residual"), {}),
    "fp8": (
        full_size(16, 1024, 9216, *QKV, "input_scale", format="fp8", dtype=torch.float32),
        {"norm": True, "activations": "fp8"},
    ),
    "int4": (full_size(16, 4096, 1024, "residual", format="int4"), {"activations": "bfloat16"}),
    "planner": (full_size(120, 3072, 14336, "bias", dtype=torch.float32), {"norm": True, "activations": "bfloat16"}),
    "ask": (full_size(32, 4096, 3072, "bias", layers=30, dtype=torch.float32), {"norm": True, "activations": "bfloat16"}),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("sm", TARGETS)
def test_variants_fit_the_card(name, sm):
    tensors, attributes = CALLS[name]
    call, target = call_of(tensors, **attributes), TARGETS[sm]
    assert linear.support(call, tensors, target) == ""
    problem, found = problem_of(call, tensors), linear.variants(call, tensors, target)
    assert len(set(found)) == len(found) > 1
    for variant in found:
        if variant.source != "triton":
            continue
        assert linear.shared_bytes(variant, problem, call, tensors, target) <= target.shared_memory
        assert variant.splits * variant.ins <= problem.ins
        assert not problem.group or problem.group % variant.ins == 0
        assert "squares" not in tensors or variant.outs % 64 == 0
        assert target.has_dependent_launch or not variant.dependent


@pytest.mark.parametrize("name", ["down", "qkv"])
def test_default_splits_give_nearly_every_processor_a_block(name):
    tensors, attributes = CALLS[name]
    call = call_of(tensors, **attributes)
    variant = linear.variants(call, tensors, CARD)[0]
    blocks = -(-problem_of(call, tensors).outs // variant.outs) * variant.splits
    assert 0.6 * CARD.num_processors <= blocks <= 1.25 * CARD.num_processors


@pytest.mark.parametrize("name, launches", [("qkv", 1), ("down", 1), ("planner", 2), ("ask", 2)])
def test_only_products_of_many_blocks_and_rows_prepare_their_input(name, launches):
    tensors, attributes = CALLS[name]
    call = call_of(tensors, **attributes)
    assert len(linear.launches(call, tensors, linear.variants(call, tensors, CARD)[0], CARD)) == launches


def test_weights_are_asked_for_before_the_kernel_in_front_has_ended():
    tensors, attributes = CALLS["qkv"]
    call = call_of(tensors, **attributes)
    variant = linear.variants(call, tensors, CARD)[0]
    (launch,) = linear.launches(call, tensors, variant, CARD)
    compiled = compile_program(launch.program(), 90)
    assert compiled.shared <= linear.shared_bytes(variant, problem_of(call, tensors), call, tensors, CARD)
    ptx = compiled.ptx
    wait = ptx.index("griddepcontrol.wait")
    assert 0 < ptx.index("prefetch.global.L2") < wait
    assert "ld.global" in ptx[:wait] and "griddepcontrol.launch_dependents" in ptx[wait:]


def test_a_kernel_that_waits_for_no_other_has_no_such_instructions():
    tensors, attributes = CALLS["down"]
    call = call_of(tensors, **attributes)
    (launch,) = linear.launches(call, tensors, linear.variants(call, tensors, TARGETS[89])[0], TARGETS[89])
    assert "griddepcontrol" not in compile_program(launch.program(), 89).ptx

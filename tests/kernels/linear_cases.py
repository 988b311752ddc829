"""Calls of `linear` with random tensors, run in Triton's interpreter and compared with the reference."""

import torch

from edgewam.kernels import reference
from edgewam.kernels.bound import bind_kernel
from edgewam.kernels.call import Call
from edgewam.kernels.ops import linear
from edgewam.kernels.target import target_of
from edgewam.kernels.weights import pack

INTERPRETER = target_of("cpu")
SUMS = 1e-5  # of the largest value: float32 sums of up to 320 products in another order, and a norm in another order
HALF = 2.0**-10  # a result that lies next to the middle of two float16 numbers may become either
FLIPPED_HALF = 1e-3  # an input next to such a middle, times its weight, in a sum of 128 and more
FLIPPED_E4M3 = 2e-2  # the same for inputs of four bits
FLIPPED_INT8 = 1e-2  # the same for inputs of 1/127 of the largest


def tensors_of(rows, ins, outs, *roles, layers=0, shared=False, pairs=False, dtype=torch.float32, seed=0):
    """x, weight and y, and the roles asked for, with batches where `layers`; x is `shared` by them or not."""
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=random)

    batch = (layers,) if layers else ()
    like_y = (*batch, 2, rows, outs // 2) if pairs else (*batch, rows, outs)
    shapes = {
        "weight_scale": (*batch, outs),
        "bias": (*batch, outs),
        "residual": like_y,
        "prefix": (rows, outs),
        "gate": (outs,),
        "clean_gate": (outs,),
        "delta": (1,),
    }
    found = {"x": normal(*(() if shared else batch), rows, ins).to(dtype), "weight": normal(*batch, outs, ins) / ins**0.5}
    for role in roles:
        if role == "mask":
            found["mask"] = torch.rand(rows, generator=random) < 0.5
        elif role == "squares":
            found["squares"] = torch.full((*batch, rows, outs // reference.SQUARE_COLUMNS), float("nan"))
        else:
            found[role] = normal(*shapes.get(role, (ins,)))
    found["y"] = torch.full(like_y, float("nan"), dtype=dtype)
    return found


def packed(tensors, format, group=0):
    """The tensors with codes or another dtype as their weight."""
    made = pack(tensors["weight"], format, group)
    return {**tensors, "weight": made.codes} | ({} if made.scale is None else {"weight_scale": made.scale})


def call_of(tensors, **attributes):
    return Call("linear", {role: role for role in tensors}, attributes)


def wanted(tensors, **attributes):
    """What the reference makes of the tensors."""
    inputs = {role: tensor for role, tensor in tensors.items() if role not in ("y", "squares")}
    return reference.linear(**inputs, **attributes)


def run(tensors, variant=None, **attributes):
    """Write y and squares."""
    call = call_of(tensors, **attributes)
    assert linear.support(call, tensors, INTERPRETER) == ""
    variant = variant or linear.variants(call, tensors, INTERPRETER)[0]
    bind_kernel(linear, call, tensors, variant, INTERPRETER)()


def check(tensors, variant=None, tolerance=SUMS, **attributes):
    """The kernel writes what the reference gives, within `tolerance` of the largest value (squares: twice that)."""
    expected = wanted(tensors, **attributes)
    run(tensors, variant, **attributes)
    near(tensors["y"], expected["y"], tolerance)
    if "squares" in tensors:
        near(tensors["squares"], expected["squares"], 2 * tolerance)


def near(found, expected, tolerance):
    error = (found.float() - expected.float()).abs().max().item()
    largest = expected.float().abs().max().item()
    assert error <= tolerance * largest, f"off by {error:.3g} of {largest:.3g}"

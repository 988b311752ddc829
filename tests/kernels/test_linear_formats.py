"""Weights in every format and activations rounded to every type: the kernel multiplies what the reference says."""

import pytest
import torch

pytest.importorskip("triton", reason="kernels need Triton: pip install 'edgewam[kernels]'")

from edgewam.kernels.ops import linear_launch
from edgewam.kernels.ops.linear_problem import problem_of
from edgewam.kernels.variant import Variant
from tests.kernels.linear_cases import (
    FLIPPED_E4M3,
    FLIPPED_HALF,
    FLIPPED_INT8,
    call_of,
    check,
    packed,
    tensors_of,
)

# format of the weight, rounding of the input, what is multiplied
PRODUCTS = [
    ("float32", "none", "float32"),
    ("float32", "float16", "float32"),
    ("float16", "none", "float32"),
    ("float16", "float16", "float16"),
    ("fp8", "none", "float32"),
    ("fp8", "float16", "float16"),
    ("fp8", "fp8", "fp8"),
    ("int8", "none", "float32"),
    ("int8", "float16", "float16"),
    ("int8", "int8", "int8"),
    ("int4", "float16", "float16"),
    ("int4", "fp8", "fp8"),
    ("int4", "int8", "int8"),
]
IDS = ["-".join(entry[:2]) for entry in PRODUCTS]


def rounded(tensors, activations):
    """The tensors with a scale of codes, such that some inputs are beyond the largest."""
    if activations not in ("fp8", "int8"):
        return tensors
    largest = {"fp8": 448.0, "int8": 127.0}[activations]
    return {**tensors, "input_scale": torch.tensor([2.5 / largest])}


@pytest.mark.parametrize("format, activations, product", PRODUCTS, ids=IDS)
@pytest.mark.parametrize("rows, ins, outs, variant", [(7, 192, 130, None), (16, 320, 64, Variant(16, 64, 64, splits=2))])
def test_every_product(format, activations, product, rows, ins, outs, variant):
    tensors = rounded(packed(tensors_of(rows, ins, outs, "bias", "smooth"), format), activations)
    assert problem_of(call_of(tensors, activations=activations), tensors).product == product
    check(tensors, variant, activations=activations)


@pytest.mark.parametrize(
    "format, activations, group",
    [
        ("int4", "float16", 64),
        ("int4", "float16", 96),
        ("int4", "int8", 64),
        ("int4", "fp8", 192),
        ("int8", "float16", 16),
        ("int8", "int8", 96),
        ("fp8", "fp8", 32),
    ],
)
def test_groups_of_inputs_have_their_own_scale(format, activations, group):
    tensors = rounded(packed(tensors_of(7, 192, 64, "bias"), format, group), activations)
    check(tensors, activations=activations)


@pytest.mark.parametrize(
    "format, activations, tolerance",
    [("float16", "float16", FLIPPED_HALF), ("fp8", "fp8", FLIPPED_E4M3), ("int8", "int8", FLIPPED_INT8)],
)
@pytest.mark.parametrize("is_prepared", [False, True])
def test_rounding_comes_after_norm_modulation_and_smoothing(format, activations, tolerance, is_prepared, monkeypatch):
    if is_prepared:
        monkeypatch.setattr(linear_launch, "PROLOGUE_BYTES", 0)
    tensors = tensors_of(16, 192, 128, "scale", "shift", "clean_scale", "clean_shift", "mask", "smooth", "squares")
    tensors = rounded(packed(tensors, format), activations)
    check(tensors, Variant(16, 64, 64), tolerance, norm=True, activations=activations)


@pytest.mark.parametrize("format, group", [("fp8", 0), ("int8", 0), ("int4", 0), ("int4", 64)])
def test_a_batch_of_codes(format, group):
    check(packed(tensors_of(7, 128, 64, "bias", layers=2), format, group), Variant(16, 64, 64), activations="float16")


def test_an_input_of_16_bits_is_multiplied_as_it_is():
    tensors = packed(tensors_of(7, 192, 64, dtype=torch.float16), "fp8")
    tensors["y"] = torch.empty(7, 64)
    problem = problem_of(call_of(tensors), tensors)
    assert (problem.product, problem.is_plain) == ("float16", True)
    check(tensors)


def test_codes_of_e4m3_are_cast_as_torch_casts_them():
    """Every number between the codes, ties and numbers below the least normal one with them."""
    steps = torch.arange(-(2**12), 2**12) / 2.0**11
    x = torch.cat([steps * 2.0**-6, steps, steps * 224.0]).view(-1, 64)
    tensors = {"x": x, "weight": torch.eye(64).to(torch.float8_e4m3fn), "y": torch.empty(x.shape)}
    check({**tensors, "input_scale": torch.ones(1)}, tolerance=0.0, activations="fp8")


def test_codes_of_int8_are_rounded_half_to_even_and_saturated():
    x = (torch.arange(-640, 640) / 4).view(-1, 64)
    tensors = {"x": x, "weight": torch.eye(64, dtype=torch.int8), "y": torch.empty(x.shape), "input_scale": torch.ones(1)}
    check(tensors, tolerance=0.0, activations="int8")


def test_sums_stay_exact_in_int8():
    tensors = tensors_of(7, 320, 64)
    tensors["x"], tensors["weight"] = (
        tensors["x"].mul(40).round(),
        tensors["weight"].mul(500).round().clamp(-128, 127).to(torch.int8),
    )
    check({**tensors, "input_scale": torch.ones(1)}, tolerance=0.0, activations="int8")

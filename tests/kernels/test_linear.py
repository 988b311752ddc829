"""The kernel `linear`, interpreted, is its reference: shapes, prologues, epilogues, batches, splits, views."""

import pytest
import torch

pytest.importorskip("triton", reason="kernels need Triton: pip install 'edgewam[kernels]'")

from edgewam.kernels.ops import linear, linear_launch
from edgewam.kernels.variant import Variant
from tests.kernels.linear_cases import FLIPPED_HALF, HALF, INTERPRETER, SUMS, call_of, check, near, run, tensors_of, wanted

MODULATION = ("scale", "shift", "clean_scale", "clean_shift", "mask")
SPLIT = Variant(16, 64, 32, splits=3)  # 192 inputs are six tiles, two for each split; 160 are five, and the last has one


@pytest.mark.parametrize("rows", [1, 7, 16, 30, 130])
@pytest.mark.parametrize("ins, outs", [(14, 192), (48, 14), (128, 130), (192, 576), (320, 64)])
def test_every_shape_is_multiplied(rows, ins, outs):
    check(tensors_of(rows, ins, outs, "bias"))


@pytest.mark.parametrize(
    "roles, attributes",
    [
        ((), {"norm": True}),
        ((), {"norm": True, "eps": 0.5}),
        (("scale", "shift"), {}),
        (("scale", "shift"), {"norm": True}),
        (MODULATION, {"norm": True}),
        (("clean_scale", "clean_shift", "scale", "shift"), {"norm": True}),  # without a mask no row is clean
        (("smooth",), {}),
        ((*MODULATION, "smooth"), {"norm": True}),
    ],
)
@pytest.mark.parametrize("rows, ins, outs", [(16, 192, 64), (7, 130, 14)])
def test_every_prologue(rows, ins, outs, roles, attributes):
    check(tensors_of(rows, ins, outs, *roles), **attributes)


@pytest.mark.parametrize(
    "roles, attributes",
    [
        (("bias", "squares"), {}),
        (("bias",), {"activation": "gelu"}),
        (("squares",), {"activation": "gelu_exact"}),
        (("gate",), {}),
        (("gate", "clean_gate", "mask", "residual"), {}),
        (("gate", "clean_gate"), {}),
        (("bias", "residual", "squares"), {"pairs": True}),
        (("bias", "residual", "delta", "prefix", "mask"), {}),
        (("bias", "gate", "clean_gate", "mask", "delta", "prefix", "residual", "squares"), {"activation": "gelu"}),
    ],
)
@pytest.mark.parametrize("variant", [None, SPLIT])
def test_every_epilogue_with_and_without_splits(roles, attributes, variant):
    check(tensors_of(7, 160, 192, *roles, pairs=attributes.get("pairs", False)), variant, **attributes)


def test_the_head_makes_an_euler_step_of_14_columns():
    check(tensors_of(16, 192, 14, *MODULATION, "bias", "residual", "delta", "prefix"), norm=True)


def test_the_gelu_of_large_numbers_is_finite():
    tensors = tensors_of(16, 16, 16)
    tensors["x"] *= 1e3
    check(tensors, activation="gelu")


@pytest.mark.parametrize("variant", [None, SPLIT])
def test_the_residual_stream_is_added_to_in_place(variant):
    tensors = tensors_of(16, 192, 192, "bias", "gate")
    tensors["y"] = tensors["residual"] = torch.randn(16, 192)
    check(tensors, variant)


def test_a_norm_keeps_its_accuracy_far_from_zero_and_beside_outliers():
    tensors = tensors_of(16, 192, 64)
    tensors["x"] += 100.0
    tensors["x"][:, 0] = 3000.0  # what is taken off first is the worst of the row
    double = {role: tensor.double() for role, tensor in tensors.items()}
    run(tensors, norm=True)
    near(tensors["y"], wanted(double, norm=True)["y"], 192 * 2.0**-23)  # cancellation to one part in 192


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("variant", [None, Variant(32, 128, 64, splits=3)])
@pytest.mark.parametrize(
    "roles, attributes",
    [
        (("bias", "squares"), {"norm": True}),
        (("scale", "shift", "bias", "residual"), {"norm": True, "pairs": True, "activation": "gelu_exact"}),
    ],
)
def test_a_batch_of_layers(shared, variant, roles, attributes):
    pairs = attributes.get("pairs", False)
    check(tensors_of(30, 192, 128, *roles, layers=3, shared=shared, pairs=pairs), variant, **attributes)


def test_one_bias_may_serve_a_batch():
    tensors = tensors_of(7, 48, 64, "bias", layers=2)
    check({**tensors, "bias": tensors["bias"][0].clone()})


def test_splits_are_added_in_one_order_and_leave_counters_for_a_replay():
    tensors = tensors_of(16, 320, 192, "bias", "squares")
    variant = Variant(16, 64, 32, splits=4)
    (described,) = linear.launches(call_of(tensors), tensors, variant, INTERPRETER)
    launch, arrivals = described.bind(), described.tensors["arrivals"]
    launch()
    first = tensors["y"].clone()
    near(first, wanted(tensors)["y"], SUMS)
    assert not arrivals.any()
    tensors["y"].fill_(float("nan"))
    launch()
    assert torch.equal(tensors["y"], first)
    assert not arrivals.any()


def test_no_split_is_empty():
    tensors = tensors_of(16, 160, 64)
    (described,) = linear_launch.launches(call_of(tensors), tensors, Variant(16, 64, 32, splits=4), INTERPRETER)
    assert described.grid == (1, 3, 1)  # five tiles, two for each
    check(tensors, Variant(16, 64, 32, splits=4))


def test_calls_that_write_one_tensor_share_their_scratch():
    tensors = tensors_of(16, 192, 64)

    def parts(of):
        return linear_launch.launches(call_of(of), of, SPLIT, INTERPRETER)[0].tensors["partials"]

    first = parts(tensors)
    assert parts({**tensors, "x": torch.randn(16, 192)}) is first
    assert parts({**tensors, "y": torch.empty(16, 64)}) is not first


@pytest.mark.parametrize("layers, shared", [(0, False), (2, False), (2, True)])
def test_an_input_that_many_blocks_read_is_prepared_once(layers, shared, monkeypatch):
    monkeypatch.setattr(linear_launch, "PROLOGUE_BYTES", 0)
    roles = ("bias", "squares", *MODULATION, "smooth") if not layers else ("bias", "scale", "shift")
    tensors = tensors_of(30, 192, 128, *roles, layers=layers, shared=shared)
    attributes = {"norm": True, "activations": "float16"}
    variant = Variant(32, 64, 64, splits=2)
    names = [launch.function for launch in linear_launch.launches(call_of(tensors, **attributes), tensors, variant, INTERPRETER)]
    assert names == ["prepare", "linear"]
    check(tensors, variant, FLIPPED_HALF, **attributes)


def test_rows_of_views_are_read_and_written_and_nothing_beside_them():
    tensors = tensors_of(7, 128, 64, "residual", "prefix", "mask", "squares")
    around = {}
    for role in ("x", "residual", "prefix", "y"):
        wide = torch.full((9, tensors[role].shape[1] + 32), float("nan"))
        wide[1:8, 16:-16] = tensors[role]
        around[role], tensors[role] = wide, wide[1:8, 16:-16]
    check(tensors, Variant(16, 64, 32, splits=2), norm=True)
    around["y"][1:8, 16:-16] = float("nan")
    assert around["y"].isnan().all()


def test_pairs_are_written_into_a_view_of_a_context():
    tensors = tensors_of(7, 48, 128, "bias", layers=2, pairs=True)
    context = torch.zeros(2, 2, 12, 64)
    tensors["y"] = context[:, :, 3:10]
    check(tensors, pairs=True)
    assert not context[:, :, :3].any() and not context[:, :, 10:].any()


def test_a_result_in_float16_is_rounded_once():
    tensors = tensors_of(16, 192, 64, "bias", dtype=torch.float16)
    expected = wanted(tensors)["y"]
    run(tensors)
    near(tensors["y"], expected, HALF)

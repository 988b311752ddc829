"""What every door refuses: sizes, dtypes, shapes, numbers, depth; each with a sentence that says what is needed."""

import math

import numpy as np
import pytest

from edgewam.robot_bridge.serving import checks
from edgewam.robot_bridge.serving.handler import DoorError

CAMERAS = {"cam_high": (6, 8, 3)}


def refused(call, *arguments, code="bad_request", **options):
    with pytest.raises(DoorError) as caught:
        call(*arguments, **options)
    assert caught.value.code == code
    return str(caught.value)


def test_a_frame_is_refused_by_its_announced_length():
    checks.check_size(8 << 20)
    assert "8388608" in refused(checks.check_size, (8 << 20) + 1, code="too_large")


@pytest.mark.parametrize("dtype", ["|u1", "<f4", "<f8", "<i4", "<i8", "|b1"])
def test_the_listed_dtypes_pass_and_keep_their_values(dtype):
    array = np.arange(6).astype(dtype).reshape(2, 3)
    np.testing.assert_array_equal(checks.array_of(dtype, [2, 3], array.tobytes()), array)


@pytest.mark.parametrize(
    "dtype", ["|O", "|V8", "<c8", "|S4", "<U4", "<M8[ns]", ">f4", "f4", "<f2", "", None, 4, "<f4,<f4", "x" * 999]
)
def test_other_dtypes_are_refused(dtype):
    assert len(refused(checks.array_of, dtype, [1], b"\0" * 8)) < 200


@pytest.mark.parametrize(
    "shape", [[3], [2, 2], [-1], [-1, -2], [1 << 40], [2**31, 2**33], [True], [2.0], ["2"], [1] * 5, "2", None, 2, [[2]]]
)
def test_shapes_that_do_not_fit_their_bytes_are_refused(shape):
    refused(checks.array_of, "<f4", shape, b"\0" * 8)


@pytest.mark.parametrize("data", [None, "12345678", 8, [0] * 8])
def test_data_must_be_bytes(data):
    refused(checks.array_of, "<f4", [2], data)


def test_depth_width_and_keys_of_a_message_are_bounded():
    checks.check_tree({"images": {"a": np.zeros(1)}, "state": [0.0] * 14})
    nested = 0
    for _ in range(5):
        nested = {"a": nested}
    refused(checks.check_tree, nested)
    refused(checks.check_tree, {str(i): i for i in range(65)})
    refused(checks.check_tree, {b"state": 1})
    refused(checks.check_tree, {"a": {3: 1}})
    refused(checks.check_tree, {"k" * 65: 1})


@pytest.mark.parametrize("value", [np.zeros(2, np.float32), np.zeros(2), np.zeros(2, np.int64), [0, 0.5], (0.0, 1.0)])
def test_a_state_of_numbers_becomes_float32(value):
    state = checks.state_of(value, 2)
    assert state.dtype == np.float32 and state.shape == (2,)


@pytest.mark.parametrize(
    "value",
    [
        None, 3.0, "00", [0.0], [0.0] * 3, ["0", "0"], [True, False], [[0, 0]], np.zeros((1, 2)), np.zeros(2, np.bool_),
        np.zeros(3), np.array([0, np.nan]), np.array([np.inf, 0]), [math.nan, 0.0], [math.inf, 0], [10**400, 0],
        np.array([1e30, 0]), [0, -1001],
    ],
)  # fmt: skip
def test_a_state_that_is_no_pose_is_refused(value):
    assert "state" in refused(checks.state_of, value, 2)


def test_images_must_have_the_configured_shapes():
    image = np.zeros((6, 8, 3), np.uint8)
    assert checks.images_of({"cam_high": image, "another": "ignored"}, CAMERAS).keys() == {"cam_high"}
    for wrong in (image[:5], image.astype(np.float32), image.transpose(2, 0, 1), image[..., :1], b"bytes", None, image.tolist()):
        assert "cam_high uint8[6, 8, 3]" in refused(checks.images_of, {"cam_high": wrong}, CAMERAS)
    assert "cam_high" in refused(checks.images_of, {}, CAMERAS)
    refused(checks.images_of, [image], CAMERAS)


def test_channels_first_is_turned_round_where_it_is_allowed():
    image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    found = checks.images_of({"cam_high": image.transpose(2, 0, 1)}, CAMERAS, allow_chw=True)
    np.testing.assert_array_equal(found["cam_high"], image)


@pytest.mark.parametrize("value", ["", "x" * 1025, "a\x00b", "a\nb", b"bytes", 3, None, ["a"]])
def test_a_prompt_is_short_printable_text(value):
    refused(checks.prompt_of, value)


@pytest.mark.parametrize("value", [-1, 1 << 41, 1.0, True, "3", None, np.float32(1), np.array([1])])
def test_a_tick_is_a_count(value):
    refused(checks.tick_of, value)


@pytest.mark.parametrize("value", [7, np.int64(7), np.array(7, np.int32)])
def test_ticks_of_numpy_are_ticks(value):
    assert checks.tick_of(value) == 7 and type(checks.tick_of(value)) is int


def test_what_a_client_sent_comes_back_short_and_printable():
    assert len(checks.shown("x" * 10_000)) < 80
    assert checks.shown("\x1b[31m\n").isprintable()

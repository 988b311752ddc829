"""Evaluation-path image composition and the normaliser against arrays recorded from the released code."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgewam.core.errors import ContractError
from edgewam.core.observation import CLAMP, Normalizer, compose_images
from edgewam.core.records import CAMERAS, ActionChunk, Observation
from tests.golden import golden_dir

NORMALIZER_TOLERANCE = 1e-6  # float32 on both sides, values up to 5: a few last-place roundings


@pytest.fixture(scope="module")
def arrays():
    return load_file(golden_dir() / "image_composition_normalizer.safetensors")


def cameras(arrays):
    names = dict(zip(CAMERAS, ("cam_head", "cam_left_wrist", "cam_right_wrist"), strict=True))
    return {camera: arrays[f"{name}_u8_chw"].transpose(1, 2, 0) for camera, name in names.items()}


def test_composition_is_bytewise_the_released_one(arrays):
    expected = arrays["eval.composed_u8_chw"].transpose(1, 2, 0)
    np.testing.assert_array_equal(compose_images(cameras(arrays), *expected.shape[:2]), expected)


def test_cameras_that_already_fit_are_copied_untouched():
    rng = np.random.default_rng(0)
    images = {
        "cam_high": rng.integers(0, 256, (128, 160, 3), np.uint8),
        "cam_left_wrist": rng.integers(0, 256, (64, 80, 3), np.uint8),
        "cam_right_wrist": rng.integers(0, 256, (64, 80, 3), np.uint8),
    }
    canvas = compose_images(images, 192, 160)
    np.testing.assert_array_equal(canvas[:128], images["cam_high"])
    np.testing.assert_array_equal(canvas[128:, :80], images["cam_left_wrist"])
    np.testing.assert_array_equal(canvas[128:, 80:], images["cam_right_wrist"])


def test_composition_names_what_is_missing_or_wrong():
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ContractError, match="cam_right_wrist"):
        compose_images({"cam_high": image, "cam_left_wrist": image}, 6, 4)
    with pytest.raises(ContractError, match="uint8"):
        compose_images({name: image.astype(np.float32) for name in CAMERAS}, 6, 4)
    with pytest.raises(ContractError, match="height % 3"):
        compose_images({name: image for name in CAMERAS}, 7, 4)


def test_normalizer_is_the_released_one_and_clamps_only_forward(arrays):
    normalizer = Normalizer(arrays["normalizer.mean"], arrays["normalizer.std"])
    forward = normalizer.forward(arrays["normalizer.x"])
    np.testing.assert_allclose(forward, arrays["normalizer.forward"], atol=NORMALIZER_TOLERANCE)
    np.testing.assert_allclose(normalizer.backward(forward), arrays["normalizer.backward_of_forward"], atol=NORMALIZER_TOLERANCE)
    far = normalizer.mean + 100 * normalizer.std
    assert normalizer.forward(far).max() == CLAMP
    np.testing.assert_allclose(normalizer.backward(np.full_like(far, 100.0)), far, rtol=1e-5)


def test_observation_refuses_wrong_cameras_shapes_and_numbers():
    shapes = {"cam_high": (2, 2, 3)}
    good = Observation({"cam_high": np.zeros((2, 2, 3), np.uint8)}, np.zeros(3, np.float32), tick=0)
    good.check(3, shapes)
    with pytest.raises(ContractError, match="no camera"):
        Observation({}, good.state, 0).check(3, shapes)
    with pytest.raises(ContractError, match="non-finite"):
        Observation(good.images, np.array([0, np.nan, 0], np.float32), 0).check(3, shapes)
    with pytest.raises(ContractError, match=r"float32\[4\]"):
        good.check(4, shapes)


def test_chunk_rows_are_found_by_time():
    chunk = ActionChunk(np.zeros((16, 14), np.float32), start_tick=100, observation_tick=100)
    assert [chunk.row(tick) for tick in (99, 100, 115, 116)] == [None, 0, 15, None]

import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgewam.core.errors import ContractError
from edgewam.core.observation import compose_images
from edgewam.core.records import CAMERAS
from edgewam.data.compose import compose_training
from tests.golden import golden_dir

# one rounding per resize of values in [-1, 1], in float32; 0 was measured
FLOAT32_TOLERANCE = 1e-6
# half a unit in the last place of float16 below 1.0, which is how the whole golden canvas is stored
FLOAT16_TOLERANCE = 2.5e-4


@pytest.fixture(scope="module")
def golden():
    return load_file(golden_dir() / "image_composition_normalizer.safetensors")


@pytest.fixture(scope="module")
def cameras(golden):
    names = {"cam_high": "cam_head", "cam_left_wrist": "cam_left_wrist", "cam_right_wrist": "cam_right_wrist"}
    return {name: golden[f"{stored}_u8_chw"][None] for name, stored in names.items()}


def test_composition_is_that_of_the_released_training(golden, cameras):
    whole = golden["train.composed_float_chw_fp16"]
    canvas = compose_training(cameras, *whole.shape[1:])[0]
    assert canvas.dtype == torch.float32
    torch.testing.assert_close(canvas, whole.float(), atol=FLOAT16_TOLERANCE, rtol=0)
    first = golden["train.composed_float_first_rows_fp32"]
    torch.testing.assert_close(canvas[:, : first.shape[1]], first, atol=FLOAT32_TOLERANCE, rtol=0)
    spans = [m for name in golden if (m := re.fullmatch(r"train\.composed_float_rows_(\d+)_(\d+)_fp32", name))]
    assert spans, "rows where the head camera meets the wrists"
    for span in spans:
        rows = canvas[:, int(span[1]) : int(span[2])]
        torch.testing.assert_close(rows, golden[span[0]], atol=FLOAT32_TOLERANCE, rtol=0)


def test_cameras_of_the_right_size_are_not_resampled():
    generator = np.random.default_rng(0)
    sizes = {"cam_high": (128, 160), "cam_left_wrist": (64, 80), "cam_right_wrist": (64, 80)}
    images = {name: generator.integers(0, 256, (*size, 3), np.uint8) for name, size in sizes.items()}
    tensors = {name: torch.from_numpy(image).permute(2, 0, 1)[None] for name, image in images.items()}
    canvas = compose_training(tensors, 192, 160, camera_size=None)[0].permute(1, 2, 0).numpy()
    run_time = compose_images(images, 192, 160).astype(np.float32) * (2 / 255) - 1
    np.testing.assert_allclose(canvas, run_time, atol=FLOAT32_TOLERANCE)


def test_large_cameras_go_through_the_released_size_first():
    generator = torch.Generator().manual_seed(0)
    large = {name: torch.randint(0, 256, (1, 3, 480, 640), generator=generator, dtype=torch.uint8) for name in CAMERAS}
    twice, once = compose_training(large, 384, 320), compose_training(large, 384, 320, camera_size=None)
    by_hand = torch.nn.functional.interpolate(large["cam_high"].float() / 255, (240, 320), mode="bilinear", antialias=True)
    by_hand = torch.nn.functional.interpolate(by_hand, (256, 320), mode="bilinear", antialias=True) * 2 - 1
    torch.testing.assert_close(twice[:, :, :256], by_hand, atol=FLOAT32_TOLERANCE, rtol=0)
    assert (twice - once).abs().max() > 1e-3


LIBERO = {"front": (256, 256), "wrist": (224, 224)}


@pytest.mark.parametrize(("composition", "sizes", "canvas"), [
    ("three_cameras", {name: (48, 64) for name in CAMERAS}, (96, 80)),
    ("side_by_side", LIBERO, (224, 448)),
    ("single", {"front": (48, 64)}, (96, 80)),
    ("single", {"scene": (48, 64)}, (96, 80)),
])  # fmt: skip
def test_training_and_run_time_put_every_camera_in_the_same_place(composition, sizes, canvas):
    plain = {name: np.full((*size, 3), 60 + 50 * place, np.uint8) for place, (name, size) in enumerate(sizes.items())}
    tensors = {name: torch.from_numpy(image).permute(2, 0, 1)[None] for name, image in plain.items()}
    run_time = compose_images(plain, *canvas, composition).astype(np.float32) * (2 / 255) - 1
    trained = compose_training(tensors, *canvas, composition=composition)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(trained, run_time, atol=FLOAT32_TOLERANCE)
    assert len(np.unique(run_time)) == len(sizes)


def test_libero_cameras_lie_side_by_side_and_are_resized_once():
    generator = torch.Generator().manual_seed(0)
    images = {name: torch.randint(0, 256, (2, 3, *size), generator=generator, dtype=torch.uint8) for name, size in LIBERO.items()}
    canvas = compose_training(images, 224, 448, composition="side_by_side")
    by_hand = torch.nn.functional.interpolate(images["front"].float() / 255, (224, 224), mode="bilinear", antialias=True)
    torch.testing.assert_close(canvas[..., :224], by_hand * 2 - 1, atol=FLOAT32_TOLERANCE, rtol=0)
    torch.testing.assert_close(canvas[..., 224:], images["wrist"] / 127.5 - 1, atol=FLOAT32_TOLERANCE, rtol=0)


def test_unknown_composition_names_those_there_are(cameras):
    with pytest.raises(ContractError, match=r"No composition 'four'\. Available: three_cameras, side_by_side, single"):
        compose_training(cameras, 384, 320, composition="four")
    with pytest.raises(ContractError, match=r"\['front', 'wrist'\].*There are: cam_high, cam_left_wrist, cam_right_wrist"):
        compose_training(cameras, 224, 448, composition="side_by_side")


def test_missing_or_malformed_cameras_are_refused(cameras):
    with pytest.raises(ContractError, match="cam_right_wrist"):
        compose_training({name: cameras[name] for name in ("cam_high", "cam_left_wrist")}, 384, 320)
    with pytest.raises(ContractError, match=r"uint8 \[B, 3, H, W\]"):
        compose_training({**cameras, "cam_high": cameras["cam_high"].float()}, 384, 320)
    with pytest.raises(ContractError, match="height % 3"):
        compose_training(cameras, 385, 320)

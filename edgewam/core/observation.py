"""Camera composition and z-score normalisation as the released policies see them at run time (facts/aha_wam.md 4.3, 4.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgewam.core.errors import ContractError
from edgewam.core.records import CAMERAS

_EPSILON = np.float32(1e-8)
CLAMP = 5.0  # released policies clamp normalised values to +-5 on the way in, never on the way out


def compose_images(images: Mapping[str, npt.NDArray[np.uint8]], height: int, width: int) -> npt.NDArray[np.uint8]:
    """One canvas uint8 [height, width, 3]: the head camera over the top two thirds, the wrists side by side below.

    Each camera is uint8 [h, w, 3] RGB of any size, resized with PIL's bilinear filter (a no-op when it already fits).
    """
    if height % 3 or width % 2:
        raise ContractError(f"The canvas must have height % 3 == 0 and width % 2 == 0, got {height}x{width}.")
    if missing := [name for name in CAMERAS if name not in images]:
        raise ContractError(f"Cannot compose without cameras {missing}. Needed: {', '.join(CAMERAS)}.")
    split, half = height * 2 // 3, width // 2
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:split] = _resize(images["cam_high"], split, width)
    canvas[split:, :half] = _resize(images["cam_left_wrist"], height - split, half)
    canvas[split:, half:] = _resize(images["cam_right_wrist"], height - split, half)
    return canvas


def _resize(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ContractError(f"A camera image must be uint8 [H, W, 3], got {image.dtype}{list(image.shape)}.")
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class Normalizer:
    """z-score per dimension: forward clamps to +-5, backward does not.  mean, std: float32 [D] in the robot's units."""

    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]

    @property
    def scale(self) -> npt.NDArray[np.float32]:
        """1 / (std + 1e-8), the released form, in float32."""
        return np.float32(1.0) / (self.std + _EPSILON)

    @property
    def offset(self) -> npt.NDArray[np.float32]:
        """-mean * scale in float32."""
        return -self.mean / (self.std + _EPSILON)

    def forward(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Robot units [..., D] -> normalised [..., D] within +-5."""
        scaled: npt.NDArray[np.float32] = np.clip(values * self.scale + self.offset, -CLAMP, CLAMP)
        return scaled

    def backward(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Normalised [..., D] -> robot units [..., D]."""
        return (values - self.offset) / self.scale

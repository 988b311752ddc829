"""Camera composition and normalisation as the released policies see them at run time (facts/aha_wam.md 4.3, 4.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgewam.core.errors import ContractError
from edgewam.core.records import CAMERAS

_EPSILON = np.float32(1e-8)
_LEAST_RANGE = np.float32(1e-4)  # released min/max normalisation leaves dimensions of a smaller range unscaled
CLAMP = 5.0  # released policies clamp normalised values to +-5 on the way in, never on the way out


@dataclass(frozen=True)
class Composition:
    """Where cameras go on a canvas: a grid of equal cells, and for each camera its box (row, column, rows, columns) in cells."""

    rows: int
    columns: int
    boxes: Mapping[str, tuple[int, int, int, int]]

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras that the canvas shows, in order."""
        return tuple(self.boxes)

    def chosen(self, available: Iterable[str]) -> dict[str, str]:
        """Place on the canvas -> name of the camera that fills it, of those `available`.

        A canvas of one camera takes the only camera there is, whatever its name.

        Raises:
            ContractError: a camera is missing.
        """
        found = tuple(available)
        if len(self.boxes) == len(found) == 1:
            return {self.cameras[0]: found[0]}
        if missing := [name for name in self.boxes if name not in found]:
            raise ContractError(
                f"Cannot compose without cameras {missing}. Needed: {', '.join(self.boxes)}. "
                f"There are: {', '.join(found) or 'none'}."
            )
        return {name: name for name in self.boxes}

    def places(self, height: int, width: int) -> dict[str, tuple[slice, slice]]:
        """Rows and columns of each camera on a canvas of this size in pixels.

        Raises:
            ContractError: the canvas does not divide into the grid's cells.
        """
        if height % self.rows or width % self.columns or min(height, width) < 1:
            raise ContractError(
                f"The canvas must have height % {self.rows} == 0 and width % {self.columns} == 0, got {height}x{width}."
            )
        cell_h, cell_w = height // self.rows, width // self.columns
        return {
            name: (slice(row * cell_h, (row + rows) * cell_h), slice(column * cell_w, (column + columns) * cell_w))
            for name, (row, column, rows, columns) in self.boxes.items()
        }


COMPOSITIONS: Mapping[str, Composition] = {
    # the head camera over the top two thirds, the wrists side by side below (RoboTwin)
    "three_cameras": Composition(3, 2, dict(zip(CAMERAS, ((0, 0, 2, 2), (2, 0, 1, 1), (2, 1, 1, 1)), strict=True))),
    # the scene on the left, the wrist on the right (LIBERO, 224x448)
    "side_by_side": Composition(1, 2, {"front": (0, 0, 1, 1), "wrist": (0, 1, 1, 1)}),
    # one camera over the whole canvas, or a picture that the client composed
    "single": Composition(1, 1, {"front": (0, 0, 1, 1)}),
}


def composition_named(name: str) -> Composition:
    """An entry of COMPOSITIONS; ContractError lists the names."""
    if name not in COMPOSITIONS:
        raise ContractError(f"No composition '{name}'. Available: {', '.join(COMPOSITIONS)}.")
    return COMPOSITIONS[name]


def composition_of(cameras: Iterable[str]) -> str | None:
    """Name of the first composition that these cameras can fill, None where there is none."""
    found = set(cameras)
    return next(
        (name for name, form in COMPOSITIONS.items() if set(form.boxes) <= found or len(found) == len(form.boxes) == 1), None
    )


def compose_images(
    images: Mapping[str, npt.NDArray[np.uint8]], height: int, width: int, composition: str = "three_cameras"
) -> npt.NDArray[np.uint8]:
    """One canvas uint8 [height, width, 3] of the cameras that the composition shows.

    Each camera is uint8 [h, w, 3] RGB of any size, resized with PIL's bilinear filter (a no-op when it already fits).
    """
    form = composition_named(composition)
    places, chosen = form.places(height, width), form.chosen(images)
    canvas = np.empty((height, width, 3), np.uint8)
    for name, (rows, columns) in places.items():
        canvas[rows, columns] = _resize(images[chosen[name]], rows.stop - rows.start, columns.stop - columns.start)
    return canvas


def _resize(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ContractError(f"A camera image must be uint8 [H, W, 3], got {image.dtype}{list(image.shape)}.")
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class Normalizer:
    """A linear map per dimension; forward clamps to +-5, backward does not.  Vectors are float32 [D] in the robot's units.

    The plain form is z-score by mean and std.  With `limits` it maps [low, high] to [-1, 1] (`from_min_max`); mean is then
    their middle and std half their distance, so that std is one normalised unit in either form.
    """

    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]
    limits: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None

    @staticmethod
    def from_min_max(low: npt.NDArray[np.float32], high: npt.NDArray[np.float32]) -> Normalizer:
        """The min/max form; dimensions that move less than 1e-4 are only shifted, by -low."""
        still = high - low < _LEAST_RANGE
        half = np.where(still, np.float32(1.0), (high - low) / np.float32(2.0))
        return Normalizer(np.where(still, low, low + half), half, (low, high))

    @property
    def is_still(self) -> npt.NDArray[np.bool_]:
        """Dimensions that the min/max form only shifts, because they move less than 1e-4 [D]."""
        if self.limits is None:
            return np.zeros(self.mean.shape, np.bool_)
        low, high = self.limits
        still: npt.NDArray[np.bool_] = high - low < _LEAST_RANGE
        return still

    @property
    def scale(self) -> npt.NDArray[np.float32]:
        """1 / (std + 1e-8) or 2 / (high - low), the released forms, in float32."""
        if self.limits is None:
            return np.float32(1.0) / (self.std + _EPSILON)
        low, high = self.limits
        ranges: npt.NDArray[np.float32] = np.where(self.is_still, np.float32(2.0), high - low)
        return np.float32(2.0) / ranges

    @property
    def offset(self) -> npt.NDArray[np.float32]:
        """-mean * scale, or what brings low to -1, in float32."""
        if self.limits is None:
            return -self.mean / (self.std + _EPSILON)
        low, _ = self.limits
        return np.where(self.is_still, -low, np.float32(-1.0) - self.scale * low)

    def forward(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Robot units [..., D] -> normalised [..., D] within +-5."""
        scaled: npt.NDArray[np.float32] = np.clip(values * self.scale + self.offset, -CLAMP, CLAMP)
        return scaled

    def backward(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Normalised [..., D] -> robot units [..., D]."""
        return (values - self.offset) / self.scale

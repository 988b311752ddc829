"""The composed canvas as training sees it: tensor resizes with antialiasing (facts/aha_wam.md 4.4, training path).

`core.observation.compose_images` is the run-time form (PIL on bytes).  The two differ by up to 0.05 where a camera is
larger than its place on the canvas, and not at all in layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from edgewam.core.errors import ContractError, require
from edgewam.core.observation import composition_named

if TYPE_CHECKING:
    from torch import Tensor

# released RoboTwin training first brings every camera to this (height, width); the other compositions resize once
RELEASED_CAMERA_SIZE = (240, 320)
_FIRST_SIZES: Mapping[str, tuple[int, int]] = {"three_cameras": RELEASED_CAMERA_SIZE}


def compose_training(
    images: Mapping[str, Tensor],
    height: int,
    width: int,
    camera_size: tuple[int, int] | Literal["released"] | None = "released",
    composition: str = "three_cameras",
) -> Tensor:
    """One canvas float32 [B, 3, height, width] in [-1, 1] from uint8 cameras [B, 3, h, w] RGB.

    Args:
        images: the cameras that the composition shows; sizes may differ.
        height: canvas height, a multiple of the composition's rows.
        width: canvas width, a multiple of its columns.
        camera_size: size that every camera is brought to first, None to resize once; by default as the released training did.
        composition: a name of `core.observation.COMPOSITIONS`.
    """
    torch = require("torch", extra="train")
    form = composition_named(composition)
    places, chosen = form.places(height, width), form.chosen(images)
    first = _FIRST_SIZES.get(composition) if camera_size == "released" else camera_size
    canvas: Tensor | None = None
    for name, (rows, columns) in places.items():
        view = images[chosen[name]]
        if view.dtype != torch.uint8 or view.ndim != 4 or view.shape[1] != 3:
            raise ContractError(f"Camera '{chosen[name]}' must be uint8 [B, 3, H, W], got {view.dtype}{list(view.shape)}.")
        view = view.float() / 255.0
        for size in (first, (rows.stop - rows.start, columns.stop - columns.start)):
            view = view if size is None else _resize(torch, view, size)
        if canvas is None:
            canvas = view.new_empty(len(view), 3, height, width)
        canvas[:, :, rows, columns] = (view - 0.5) / 0.5
    assert canvas is not None, "a composition shows at least one camera"
    return canvas


def _resize(torch: Any, view: Tensor, size: tuple[int, int]) -> Any:
    if tuple(view.shape[2:]) == size:
        return view
    return torch.nn.functional.interpolate(view, size=size, mode="bilinear", align_corners=False, antialias=True)

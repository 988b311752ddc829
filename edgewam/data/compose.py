"""The composed canvas as training sees it: tensor resizes with antialiasing (facts/aha_wam.md 4.4, training path).

`core.observation.compose_images` is the run-time form (PIL on bytes).  The two differ by up to 0.05 where a camera is
larger than its place on the canvas, and not at all in layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgewam.core.errors import ContractError, require
from edgewam.core.records import CAMERAS

if TYPE_CHECKING:
    from torch import Tensor

RELEASED_CAMERA_SIZE = (240, 320)  # released training first brings every camera to this (height, width)


def compose_training(
    images: Mapping[str, Tensor], height: int, width: int, camera_size: tuple[int, int] | None = RELEASED_CAMERA_SIZE
) -> Tensor:
    """One canvas float32 [B, 3, height, width] in [-1, 1] from uint8 cameras [B, 3, h, w] RGB.

    Args:
        images: the three cameras; sizes may differ.
        height: canvas height, a multiple of 3: the head camera fills the top two thirds.
        width: canvas width, even: the wrists share the lower third.
        camera_size: size that every camera is brought to first, or None to resize once.
    """
    torch = require("torch", extra="train")
    if height % 3 or width % 2:
        raise ContractError(f"The canvas must have height % 3 == 0 and width % 2 == 0, got {height}x{width}.")
    if missing := [name for name in CAMERAS if name not in images]:
        raise ContractError(f"Cannot compose without cameras {missing}. Needed: {', '.join(CAMERAS)}.")
    split = height * 2 // 3
    sizes = {
        "cam_high": (split, width),
        "cam_left_wrist": (height - split, width // 2),
        "cam_right_wrist": (height - split, width // 2),
    }
    views = {}
    for name, size in sizes.items():
        if images[name].dtype != torch.uint8 or images[name].ndim != 4 or images[name].shape[1] != 3:
            raise ContractError(
                f"Camera '{name}' must be uint8 [B, 3, H, W], got {images[name].dtype}{list(images[name].shape)}."
            )
        view = images[name].float() / 255.0
        for step in (camera_size, size):
            view = view if step is None else _resize(torch, view, step)
        views[name] = view
    wrists = torch.cat([views["cam_left_wrist"], views["cam_right_wrist"]], 3)
    canvas: Tensor = (torch.cat([views["cam_high"], wrists], 2) - 0.5) / 0.5
    return canvas


def _resize(torch: Any, view: Tensor, size: tuple[int, int]) -> Any:
    if tuple(view.shape[2:]) == size:
        return view
    return torch.nn.functional.interpolate(view, size=size, mode="bilinear", align_corners=False, antialias=True)

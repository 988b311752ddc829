"""What crosses the boundary between a robot and a policy: observations in, action chunks out.  NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import ContractError

CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")


@dataclass(frozen=True)
class Observation:
    """One look at the robot.

    images: camera name -> uint8 [H, W, 3] RGB.  state: float32 [D], radians (grippers 0..1).
    tick: episode-relative control step of the state.  t_capture_ns: CLOCK_MONOTONIC of the image, nanoseconds.
    """

    images: Mapping[str, npt.NDArray[np.uint8]]
    state: npt.NDArray[np.float32]
    tick: int
    t_capture_ns: int = 0

    def check(self, state_dim: int, camera_shapes: Mapping[str, tuple[int, int, int]]) -> None:
        """Raise ContractError on missing cameras, wrong shapes or dtypes, or a state that is not finite."""
        if self.state.shape != (state_dim,) or self.state.dtype != np.float32:
            raise ContractError(f"State must be float32[{state_dim}], got {self.state.dtype}{list(self.state.shape)}.")
        if not np.isfinite(self.state).all():
            raise ContractError(f"State has non-finite values at joints {np.flatnonzero(~np.isfinite(self.state)).tolist()}.")
        for name, shape in camera_shapes.items():
            image = self.images.get(name)
            if image is None:
                raise ContractError(f"Observation has no camera '{name}'. It has: {', '.join(self.images) or 'none'}.")
            if image.shape != tuple(shape) or image.dtype != np.uint8:
                raise ContractError(f"Camera '{name}' must be uint8{list(shape)}, got {image.dtype}{list(image.shape)}.")


@dataclass(frozen=True)
class ActionChunk:
    """Absolute targets for consecutive control steps: actions float32 [horizon, D]; row 0 belongs to `start_tick`.

    `observation_tick` and `t_capture_ns` name the observation it was computed from.
    """

    actions: npt.NDArray[np.float32]
    start_tick: int
    observation_tick: int
    t_capture_ns: int = 0

    def row(self, tick: int) -> int | None:
        """Row for a control step, by time and never by queue position; None outside the chunk."""
        index = tick - self.start_tick
        return index if 0 <= index < len(self.actions) else None

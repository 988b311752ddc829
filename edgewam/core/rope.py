"""Rotary tables for hosts: cos and sin as engines take them, from exact integer positions, without torch.

Angles are computed in float64 and cast to float32 once, so any position works: nothing is limited to a table length
(DESIGN section 3).  `models/rope.py` is the same formula in torch; a test holds the two together.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Table = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]  # cos and sin, [..., channels / 2]


def axis_angles(positions: npt.ArrayLike, dim: int, theta: float) -> npt.NDArray[np.float64]:
    """Angles [..., dim/2] of integer positions [...] for an axis of `dim` channels: position * theta**(-2j/dim)."""
    exponent = np.arange(0, dim, 2, dtype=np.float64) / dim
    angles: npt.NDArray[np.float64] = np.asarray(positions, np.float64)[..., None] * theta**-exponent
    return angles


def axis_rope(positions: npt.ArrayLike, dim: int, theta: float) -> Table:
    """(cos, sin) float32 [..., dim/2] of one axis, as the executor's action tokens need them."""
    angles = axis_angles(positions, dim, theta)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def frame_rope(frame_id: int, grid: tuple[int, int], dims: tuple[int, int, int], theta: float) -> Table:
    """(cos, sin) float32 [rows*cols, sum(dims)/2] of one latent frame: axes time, row, column; tokens row-major."""
    rows, cols = grid
    time = np.broadcast_to(axis_angles(frame_id, dims[0], theta), (rows, cols, dims[0] // 2))
    row = np.broadcast_to(axis_angles(np.arange(rows), dims[1], theta)[:, None], (rows, cols, dims[1] // 2))
    col = np.broadcast_to(axis_angles(np.arange(cols), dims[2], theta), (rows, cols, dims[2] // 2))
    angles = np.concatenate([time, row, col], axis=-1).reshape(rows * cols, -1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

"""Rotary position tables and their application, without complex numbers.

Angles are computed in float64 and cast to float32 once; pairs are interleaved (channel 2i with 2i+1).  The planner has
three axes (time, row, column), the executor one.  Positions may be any integer: nothing limits them to a table length.
"""

from __future__ import annotations

import torch
from torch import Tensor

Rope = tuple[Tensor, Tensor]  # cos and sin, [..., tokens, head_dim / 2]


def axis_angles(positions: Tensor, dim: int, theta: float) -> Tensor:
    """Angles [..., dim/2] float64 of integer positions [...] for an axis of `dim` channels."""
    exponent = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim
    return positions.to(torch.float64)[..., None] * theta**-exponent


def video_angles(frame_ids: Tensor, grid: tuple[int, int], dims: tuple[int, int, int], theta: float) -> Tensor:
    """Angles [..., F*rows*cols, head_dim/2] float64 of latent frames with temporal positions frame_ids [..., F]."""
    rows, cols = grid
    device = frame_ids.device
    time = axis_angles(frame_ids, dims[0], theta)[..., None, None, :].expand(*frame_ids.shape, rows, cols, -1)
    row = axis_angles(torch.arange(rows, device=device), dims[1], theta)[:, None].expand(*frame_ids.shape, rows, cols, -1)
    col = axis_angles(torch.arange(cols, device=device), dims[2], theta).expand(*frame_ids.shape, rows, cols, -1)
    return torch.cat([time, row, col], dim=-1).flatten(-4, -2)


def rope(angles: Tensor) -> Rope:
    """(cos, sin) in float32 of float64 angles: the one cast at the boundary."""
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, table: Rope) -> Tensor:
    """Rotate interleaved pairs.  x [B, S, N, K], table [S, K/2] or [B, S, K/2]; float32 arithmetic.

    (a, b) -> (a cos - b sin, b cos + a sin): each channel times cos, plus its partner times a signed sin.
    """
    cos, sin = (part.unsqueeze(-2) for part in table)  # one head axis
    partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * torch.stack([cos, cos], -1).flatten(-2), partner, torch.stack([-sin, sin], -1).flatten(-2))

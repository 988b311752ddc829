"""Building blocks of the Wan2.2 video VAE: causal convolution, channel norm, residual and attention blocks, resampling stages.

Videos are [B, C, T, H, W] and are processed as a whole clip.  The released code streams frame 0 and then groups of four with a
two-frame cache; zero padding at the front gives the same numbers, except in the two temporal resamplers, which treat frame 0
apart (see `Downsample` and `Upsample`).  A clip of one frame takes the same road with two-dimensional convolutions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# F.normalize clamps the norm at 1e-12; here the clamp is on the square, so that one rsqrt does the work.
_MIN_SQUARE = 1e-24


class CausalConv3d(nn.Conv3d):
    """Convolution over [B, C, T, H, W] that sees no later frame: the front is padded with kernel_t - 1 zero frames.

    A fresh layer starts as a frame-wise 2-D convolution (only the last temporal tap is non-zero), so that a VAE trained on
    images is already a sensible VAE for clips.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=(0, kernel // 2, kernel // 2))
        self.front = kernel - 1

    def reset_parameters(self) -> None:
        fan_in = self.in_channels * self.kernel_size[1] * self.kernel_size[2]
        bound = 1 / math.sqrt(fan_in)
        nn.init.zeros_(self.weight)
        nn.init.uniform_(self.weight[:, :, -1], -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T, H, W]."""
        if x.shape[2] == 1:  # the earlier taps would meet only zero padding: an exact third of the work
            return F.conv2d(x.squeeze(2), self.weight[:, :, -1], self.bias, padding=self.padding[1:]).unsqueeze(2)
        if self.front:
            x = F.pad(x, (0, 0, 0, 0, self.front, 0))
        return F.conv3d(x, self.weight, self.bias, padding=self.padding)


class ChannelNorm(nn.Module):
    """x / |x| * sqrt(C) * gamma, the norm taken over dimension 1.  `spatial_dims` only shapes gamma, as in the checkpoint."""

    def __init__(self, channels: int, spatial_dims: int) -> None:
        super().__init__()
        self.scale = channels**0.5
        self.gamma = nn.Parameter(torch.ones(channels, *([1] * spatial_dims)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> [B, C, ...]."""
        inverse = x.square().sum(dim=1, keepdim=True).clamp_min(_MIN_SQUARE).rsqrt()
        return x * inverse * (self.gamma * self.scale)


class ResidualBlock(nn.Module):
    """Twice (norm, SiLU, 3x3x3 causal convolution) plus a shortcut, which is a 1x1x1 convolution if the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        # positions are the checkpoint's keys; 5 is a dropout there
        self.residual = nn.Sequential(
            ChannelNorm(in_channels, 3),
            nn.SiLU(),
            CausalConv3d(in_channels, out_channels, 3),
            ChannelNorm(out_channels, 3),
            nn.SiLU(),
            nn.Identity(),
            CausalConv3d(out_channels, out_channels, 3),
        )
        self.shortcut = nn.Identity() if in_channels == out_channels else CausalConv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T, H, W]."""
        return self.shortcut(x) + self.residual(x)


class FrameAttention(nn.Module):
    """Single-head self-attention over the pixels of each frame, with a residual.  Frames do not see each other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T, H, W]."""
        frames = frames_to_batch(x)
        B, C, H, W = frames.shape
        qkv = self.to_qkv(self.norm(frames)).reshape(B, 3, C, H * W).transpose(2, 3)
        q, k, v = qkv.unbind(dim=1)  # each [B, H*W, C]
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = self.proj(mixed.transpose(1, 2).reshape(B, C, H, W))
        return x + batch_to_frames(mixed, x.shape[2])


class Downsample(nn.Module):
    """Halve height and width (3x3, stride 2, zero padding right and below); with `temporal` also T = 1+2m -> 1+m.

    Frame 0 passes the temporal part untouched; every later output sees three input frames: two new ones and the one before.
    """

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if temporal else None
        if self.time_conv is not None:  # starts by keeping the last frame of each pair
            _identity_last_tap(self.time_conv)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, 1 + (T-1)/2 or T, H/2, W/2]."""
        T = x.shape[2]
        x = batch_to_frames(self.resample(frames_to_batch(x)), T)
        if self.time_conv is None or T == 1:
            return x
        return torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)


class Upsample(nn.Module):
    """Double height and width (nearest, then 3x3); with `temporal` also T = 1+m -> 1+2m.

    Frame 0 passes the temporal part untouched and is not seen by it: frames 1.. each become two, from a causal convolution
    whose zero padding starts at frame 1.
    """

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(channels, channels, 3, padding=1))
        self.time_conv = nn.Conv3d(channels, 2 * channels, (3, 1, 1)) if temporal else None
        if self.time_conv is not None:  # starts by showing every frame twice
            _identity_last_tap(self.time_conv)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, 1 + 2*(T-1) or T, 2*H, 2*W]."""
        if self.time_conv is not None and x.shape[2] > 1:
            B, C, T, H, W = x.shape
            later = self.time_conv(F.pad(x[:, :, 1:], (0, 0, 0, 0, 2, 0)))
            # the two halves of the channels are the two frames of a pair
            later = later.reshape(B, 2, C, T - 1, H, W).permute(0, 2, 3, 1, 4, 5).reshape(B, C, 2 * (T - 1), H, W)
            x = torch.cat([x[:, :, :1], later], dim=2)
        return batch_to_frames(self.resample(frames_to_batch(x)), x.shape[2])


class DownStage(nn.Module):
    """Encoder stage: residual blocks, then (unless `last`) a `Downsample`; plus the parameter-free average shortcut."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, temporal: bool, last: bool) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.factors = (1, 1) if last else (2 if temporal else 1, 2)
        layers: list[nn.Module] = [
            ResidualBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(num_blocks)
        ]
        self.downsamples = nn.Sequential(*layers, *([] if last else [Downsample(out_channels, temporal)]))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T', H', W']."""
        return self.downsamples(x) + average_down(x, self.out_channels, *self.factors)


class UpStage(nn.Module):
    """Decoder stage: residual blocks, then (unless `last`) an `Upsample` and the parameter-free copying shortcut."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, temporal: bool, last: bool) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.factors = None if last else (2 if temporal else 1, 2)
        layers: list[nn.Module] = [
            ResidualBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(num_blocks)
        ]
        self.upsamples = nn.Sequential(*layers, *([] if last else [Upsample(out_channels, temporal)]))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T', H', W']."""
        y = self.upsamples(x)
        return y if self.factors is None else y + copy_up(x, self.out_channels, *self.factors)


def average_down(x: Tensor, out_channels: int, factor_t: int, factor_s: int) -> Tensor:
    """Shortcut that moves time and space into channels (order c, t, h, w) and averages groups of neighbours.

    The front is padded with zero frames to a multiple of factor_t.  With the widths of Wan2.2 the groups line up with the time
    slot, so for frame 0 every even output channel is exactly zero: it is not an average of the real frame.

    [B, C, T, H, W] -> [B, out_channels, ceil(T / factor_t), H / factor_s, W / factor_s].
    """
    if factor_t == factor_s == 1 and out_channels == x.shape[1]:
        return x
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % factor_t, 0))
    B, C, T, H, W = x.shape
    t, s = factor_t, factor_s
    x = x.reshape(B, C, T // t, t, H // s, s, W // s, s).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(B, out_channels, -1, T // t, H // s, W // s).mean(dim=2)


def copy_up(x: Tensor, out_channels: int, factor_t: int, factor_s: int) -> Tensor:
    """Shortcut that repeats channels and moves them into time and space (order c, t, h, w); frame 0 is not copied in time.

    [B, C, T, H, W] -> [B, out_channels, T * factor_t - (factor_t - 1), H * factor_s, W * factor_s].
    """
    B, C, T, H, W = x.shape
    t, s = factor_t, factor_s
    x = x.repeat_interleave(out_channels * t * s * s // C, dim=1)
    x = x.reshape(B, out_channels, t, s, s, T, H, W).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(B, out_channels, T * t, H * s, W * s)[:, :, t - 1 :]


def pixels_to_channels(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B, 4*C, T, H/2, W/2]; the four pixels of a 2x2 block become channels, column index slower than row."""
    B, C, T, H, W = x.shape
    return x.reshape(B, C, T, H // 2, 2, W // 2, 2).permute(0, 1, 6, 4, 2, 3, 5).reshape(B, 4 * C, T, H // 2, W // 2)


def channels_to_pixels(x: Tensor) -> Tensor:
    """[B, 4*C, T, H, W] -> [B, C, T, 2*H, 2*W], the inverse of `pixels_to_channels`."""
    B, C, T, H, W = x.shape
    return x.reshape(B, C // 4, 2, 2, T, H, W).permute(0, 1, 4, 5, 3, 6, 2).reshape(B, C // 4, T, 2 * H, 2 * W)


def frames_to_batch(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B*T, C, H, W]."""
    return x.transpose(1, 2).flatten(0, 1)


def batch_to_frames(x: Tensor, num_frames: int) -> Tensor:
    """[B*T, C, H, W] -> [B, C, T, H, W]."""
    return x.unflatten(0, (-1, num_frames)).transpose(1, 2)


def _residual_blocks(in_channels: int, out_channels: int, num_blocks: int) -> list[nn.Module]:
    """The first block changes the width."""
    return [ResidualBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(num_blocks)]


def _identity_last_tap(conv: nn.Conv3d) -> None:
    """Set the kernel to zero except the last temporal tap, which copies input channel i to every output channel i mod in."""
    assert conv.bias is not None
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    eye = torch.eye(conv.in_channels, device=conv.weight.device)
    with torch.no_grad():
        conv.weight[:, :, -1, 0, 0].copy_(eye.repeat(conv.out_channels // conv.in_channels, 1))

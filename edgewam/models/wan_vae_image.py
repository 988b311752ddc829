"""The VAE encoder for one camera image: two-dimensional, made to be exported and to run every chunk.

For a clip of one frame only the last temporal tap of each kernel meets data and the temporal strides do nothing, so the encoder
collapses to 2-D convolutions: a third of the work, same latent up to rounding.  Folded in float64: pixel shuffle and pixel
scaling into the first convolution; the pointwise convolution, the dropped log-variance and the latent constants into the last.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewam.models.wan_vae import PIXELS_PER_LATENT, WanVae
from edgewam.models.wan_vae_blocks import CausalConv3d, ChannelNorm, DownStage, FrameAttention, ResidualBlock, average_down

_MIN_NORM = 1e-12
_PIXEL_MIDDLE = 127.5  # u8 * (2/255) - 1 == (u8 - 127.5) * (2/255); the difference is exact even in bfloat16


def image_encoder(vae: WanVae) -> ImageEncoder:
    """Collapse the encoder of a VAE; the result has its own frozen copy of the weights, in the VAE's dtype."""
    return ImageEncoder(vae).eval().requires_grad_(False)


class ImageEncoder(nn.Module):
    """uint8 image [H, W, 3] (as a camera gives it; H and W multiples of 16) -> normalised latent [1, z_dim, H/16, W/16]."""

    def __init__(self, vae: WanVae) -> None:
        super().__init__()
        encoder = vae.encoder
        self.stem = _stem(encoder.conv1)
        self.stages = nn.Sequential(*(_Stage(stage) for stage in encoder.downsamples))
        first, attention, second = encoder.middle
        self.middle = nn.Sequential(_Block(first), _Attention(attention), _Block(second))
        self.head_norm = _NormSilu(encoder.head[0])
        self.head = _head(encoder.head[2], vae)

    def forward(self, image: Tensor) -> Tensor:
        assert image.dim() == 3 and image.shape[2] == 3, "one image, channels last"
        assert image.shape[0] % PIXELS_PER_LATENT == 0 and image.shape[1] % PIXELS_PER_LATENT == 0
        x = image.permute(2, 0, 1).unsqueeze(0).to(self.stem.weight.dtype) - _PIXEL_MIDDLE
        return self.head(self.head_norm(self.middle(self.stages(self.stem(x)))))


class _NormSilu(nn.Module):
    """Channel norm and, unless `activate` is false, SiLU; ONNX Runtime runs it as ReduceL2, Clip, Div, Mul, QuickGelu."""

    def __init__(self, norm: ChannelNorm, activate: bool = True) -> None:
        super().__init__()
        self.gain = nn.Parameter((norm.gamma * norm.scale).detach().reshape(-1, 1, 1))
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(_MIN_NORM) * self.gain
        return F.silu(x) if self.activate else x


class _Block(nn.Module):
    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        norm1, _, conv1, norm2, _, _, conv2 = block.residual
        self.residual = nn.Sequential(_NormSilu(norm1), _last_tap(conv1), _NormSilu(norm2), _last_tap(conv2))
        self.shortcut = _last_tap(block.shortcut) if isinstance(block.shortcut, CausalConv3d) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + self.shortcut(x)


class _Attention(nn.Module):
    def __init__(self, attention: FrameAttention) -> None:
        super().__init__()
        self.norm = _NormSilu(attention.norm, activate=False)
        self.to_qkv = _conv2d(attention.to_qkv.weight, attention.to_qkv.bias)
        self.proj = _conv2d(attention.proj.weight, attention.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).chunk(3, dim=1)  # [1, C, L] each, L = pixels
        weights = torch.softmax(q.transpose(1, 2) @ k * x.shape[1] ** -0.5, dim=-1)
        return x + self.proj((v @ weights.transpose(1, 2)).reshape(x.shape))


class _Stage(nn.Module):
    """Residual blocks, strided convolution, and the average shortcut of frame 0 as a 2x2 mean and a constant channel mixing."""

    def __init__(self, stage: DownStage) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_Block(layer) for layer in stage.downsamples if isinstance(layer, ResidualBlock)))
        self.last = stage.factors == (1, 1)
        if self.last:
            return
        down = stage.downsamples[-1].resample[1]
        self.down = _conv2d(down.weight, down.bias, stride=2)
        self.mix: nn.Module = nn.Identity()
        mixing = _shortcut_mixing(stage, self.blocks[0].residual[0].gain.shape[0])
        if not torch.equal(mixing, torch.eye(*mixing.shape, device="cpu")):
            self.mix = _conv2d(mixing[:, :, None, None].to(down.weight), None)

    def forward(self, x: Tensor) -> Tensor:
        if self.last:
            return self.blocks(x) + x
        return self.down(F.pad(self.blocks(x), (0, 1, 0, 1))) + self.mix(F.avg_pool2d(x, 2))


def _shortcut_mixing(stage: DownStage, in_channels: int) -> Tensor:
    """The shortcut of frame 0 as a matrix [out, in] on the 2x2 means, read off by sending one channel at a time through it."""
    one_hot = torch.eye(in_channels, device="cpu")[:, :, None, None, None].expand(-1, -1, 1, 2, 2).clone()
    mixing = average_down(one_hot, stage.out_channels, *stage.factors)
    corner = torch.zeros_like(one_hot)
    corner[..., 0, 0] = 4 * one_hot[..., 0, 0]  # the same mean from one pixel must give the same, else a mean is not enough
    if not torch.equal(mixing, average_down(corner, stage.out_channels, *stage.factors)):
        raise ValueError(
            f"The shortcut from {in_channels} to {stage.out_channels} channels averages less than a 2x2 block; "
            "the image encoder needs dim_mult that at most doubles from stage to stage"
        )
    return mixing[:, :, 0, 0, 0].T


def _stem(conv: CausalConv3d) -> nn.Conv2d:
    """3x3 convolution over 2x2-shuffled scaled pixels [O, 12, ., 3, 3] -> 6x6 convolution of stride 2 over raw pixels."""
    weight = conv.weight[:, :, -1].double() * (2 / 255)
    out, _, kh, kw = weight.shape
    weight = weight.reshape(out, 3, 2, 2, kh, kw).permute(0, 1, 4, 3, 5, 2)  # [O, c, kh, row, kw, column]
    weight = weight.reshape(out, 3, 2 * kh, 2 * kw)
    return _conv2d(weight.to(conv.weight.dtype), conv.bias, stride=2, padding=kh - 1)


def _head(conv: CausalConv3d, vae: WanVae) -> nn.Conv2d:
    """Last 3x3 convolution, mean half of the pointwise one and (mu - mean) / std as one convolution."""
    z_dim = vae.config.z_dim
    std = vae.latent_std.double().flatten()
    mix = vae.conv1.weight[:z_dim, :, 0, 0, 0].double() / std[:, None]
    weight = torch.einsum("om,mihw->oihw", mix, conv.weight[:, :, -1].double())
    bias = mix @ conv.bias.double() + (vae.conv1.bias[:z_dim].double() - vae.latent_mean.double().flatten()) / std
    return _conv2d(weight.to(conv.weight.dtype), bias.to(conv.weight.dtype), padding=1)


def _last_tap(conv: CausalConv3d) -> nn.Conv2d:
    return _conv2d(conv.weight[:, :, -1], conv.bias, padding=conv.kernel_size[1] // 2)


def _conv2d(weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    out, channels, kh, kw = weight.shape
    conv = nn.Conv2d(channels, out, (kh, kw), stride, padding, bias=bias is not None, device="meta")
    conv.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return conv

"""The Wan2.2 video VAE (16x16 in space, 4x in time, 48 channels): whole-clip encoder and decoder with the published keys.

`encode` returns the normalised mean, as the policies use it: the log-variance is only for training the VAE.  The state dict has
the keys and shapes of the published Wan2.2_VAE file, without prefix; the latent constants belong to the configuration.
The two-dimensional encoder for one camera image is in `wan_vae_image`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgewam.models.wan_vae_blocks import (
    CausalConv3d,
    ChannelNorm,
    DownStage,
    FrameAttention,
    ResidualBlock,
    UpStage,
    channels_to_pixels,
    pixels_to_channels,
)

PIXELS_PER_LATENT = 16  # per side: 2 from the pixel shuffle, 8 from three strided stages
FRAMES_PER_LATENT = 4

# Mean and standard deviation of each latent channel: constants of the released Wan2.2-TI2V-5B VAE, read from norm.mean and
# norm.std of tests/golden/aha_wam/vae.safetensors.  They are not in the published weight file.
# fmt: off
WAN22_LATENT_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.157, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.052, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
WAN22_LATENT_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on


@dataclass(frozen=True)
class WanVaeConfig:
    """Sizes of the VAE (defaults: the released one) and the constants that normalise its latents.

    `dim` and `dec_dim` are the base widths of encoder and decoder, multiplied per stage by `dim_mult`; all stages but the last
    halve the image, and those with `temporal_downsample` also halve the frame rate.
    """

    dim: int = 160
    dec_dim: int = 256
    z_dim: int = 48
    dim_mult: tuple[int, int, int, int] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, bool, bool] = (False, True, True)
    latent_mean: tuple[float, ...] = WAN22_LATENT_MEAN
    latent_std: tuple[float, ...] = WAN22_LATENT_STD

    def __post_init__(self) -> None:
        if len(self.dim_mult) != 4 or len(self.temporal_downsample) != 3 or sum(self.temporal_downsample) != 2:
            raise ValueError("WanVaeConfig needs 4 entries in dim_mult and 3 in temporal_downsample, two of them true")
        if self.dim_mult[2] != self.dim_mult[3]:
            raise ValueError(f"WanVaeConfig.dim_mult must end with two equal numbers (the last shortcut), got {self.dim_mult}")
        if len(self.latent_mean) != self.z_dim or len(self.latent_std) != self.z_dim:
            raise ValueError(f"WanVaeConfig needs z_dim={self.z_dim} latent means and standard deviations")
        if min(self.latent_std) <= 0:
            raise ValueError("WanVaeConfig.latent_std must be positive")


class Encoder(nn.Module):
    """Pixel-shuffled video [B, 12, T, H/2, W/2] -> [B, 2*z_dim, 1+(T-1)/4, H/16, W/16]."""

    def __init__(self, config: WanVaeConfig) -> None:
        super().__init__()
        widths = [config.dim * m for m in (config.dim_mult[0], *config.dim_mult)]
        last = len(config.dim_mult) - 1
        self.conv1 = CausalConv3d(12, widths[0], 3)
        self.downsamples = nn.Sequential(
            *(
                DownStage(widths[i], widths[i + 1], config.num_res_blocks, i < last and config.temporal_downsample[i], i == last)
                for i in range(last + 1)
            )
        )
        self.middle = _middle(widths[-1])
        self.head = nn.Sequential(ChannelNorm(widths[-1], 3), nn.SiLU(), CausalConv3d(widths[-1], 2 * config.z_dim, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.downsamples(self.conv1(x))))


class Decoder(nn.Module):
    """Latent [B, z_dim, T, h, w] -> pixel-shuffled video [B, 12, 1+4*(T-1), 8*h, 8*w]; one residual block more per stage."""

    def __init__(self, config: WanVaeConfig) -> None:
        super().__init__()
        mult = config.dim_mult[::-1]
        widths = [config.dec_dim * m for m in (mult[0], *mult)]
        temporal = config.temporal_downsample[::-1]
        last = len(mult) - 1
        self.conv1 = CausalConv3d(config.z_dim, widths[0], 3)
        self.middle = _middle(widths[0])
        self.upsamples = nn.Sequential(
            *(
                UpStage(widths[i], widths[i + 1], config.num_res_blocks + 1, i < last and temporal[i], i == last)
                for i in range(last + 1)
            )
        )
        self.head = nn.Sequential(ChannelNorm(widths[-1], 3), nn.SiLU(), CausalConv3d(widths[-1], 12, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.upsamples(self.middle(self.conv1(x))))


class WanVae(nn.Module):
    """Encoder, decoder and the two pointwise convolutions at the latent; see `encode` and `decode`."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: WanVaeConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or WanVaeConfig()
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)
        shape = (1, config.z_dim, 1, 1, 1)
        self.register_buffer("latent_mean", torch.tensor(config.latent_mean).view(shape), persistent=False)
        self.register_buffer("latent_std", torch.tensor(config.latent_std).view(shape), persistent=False)

    def encode(self, video: Tensor) -> Tensor:
        """Normalised latent of a clip: video [B, 3, 1+4k, H, W] in [-1, 1] -> [B, z_dim, 1+k, H/16, W/16].

        Raises:
            ValueError: if the shape does not fit.
        """
        return (self.encode_moments(video)[0] - self.latent_mean) / self.latent_std

    def encode_image(self, image: Tensor) -> Tensor:
        """Normalised latent of single images, each a clip of its own: [B, 3, H, W] in [-1, 1] -> [B, z_dim, H/16, W/16]."""
        if image.dim() != 4:
            raise ValueError(f"encode_image expects [B, 3, H, W], got shape {tuple(image.shape)}; use encode for clips")
        return self.encode(image.unsqueeze(2)).squeeze(2)

    def encode_moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance before normalisation, each [B, z_dim, 1+k, H/16, W/16] (for training the VAE).

        Raises:
            ValueError: if the shape does not fit.
        """
        _check_video(video)
        mean, log_variance = self.conv1(self.encoder(pixels_to_channels(video))).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latent: Tensor, *, clamp: bool = True) -> Tensor:
        """Video of a normalised latent: [B, z_dim, 1+k, h, w] -> [B, 3, 1+4k, 16*h, 16*w], clamped to [-1, 1].

        `clamp=False` keeps the gradient of pixels that leave the range, which training needs.

        Raises:
            ValueError: if the shape does not fit.
        """
        z_dim = self.config.z_dim
        if latent.dim() != 5 or latent.shape[1] != z_dim or latent.shape[2] < 1:
            raise ValueError(f"decode expects a latent [B, {z_dim}, 1+k, h, w], got shape {tuple(latent.shape)}")
        video = channels_to_pixels(self.decoder(self.conv2(latent * self.latent_std + self.latent_mean)))
        return video.clamp(-1.0, 1.0) if clamp else video


def _middle(channels: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(channels, channels), FrameAttention(channels), ResidualBlock(channels, channels))


def _check_video(video: Tensor) -> None:
    shape = tuple(video.shape)
    if len(shape) != 5 or shape[1] != 3:
        raise ValueError(f"The VAE expects a video [B, 3, T, H, W], got shape {shape}")
    if shape[2] % FRAMES_PER_LATENT != 1:
        raise ValueError(f"The VAE expects T = 1 + 4k frames (1, 5, 9, ...), got T={shape[2]}; cut or repeat frames to fit")
    if shape[3] % PIXELS_PER_LATENT or shape[4] % PIXELS_PER_LATENT or not shape[3] or not shape[4]:
        raise ValueError(f"The VAE expects H and W to be multiples of 16, got {shape[3]}x{shape[4]}; resize or pad the image")

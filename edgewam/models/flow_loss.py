"""What the joint losses of all families share: a batch, its noise, what the networks are given, and masked velocity errors.

What a family adds is `predict`: how its experts see each other.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from edgewam.flow.prefix import draw_prefix_rows, prefix_mask, prefix_timesteps, restore_prefix
from edgewam.flow.schedule import TableDtype
from edgewam.flow.training import add_noise, draw_timesteps, loss_weight, velocity_target
from edgewam.models.wam_config import WamConfig


@dataclass(frozen=True)
class LossBatch:
    """One batch: C chunks, F latent frames (the first is the current image), M history frames (M may be 0).

    actions [B, horizon, A] and proprio [B, C, P] (the state at each chunk's start) are normalised and already shifted
    by the sample's action offset; action_is_pad [B, horizon] and image_is_pad [B, 1 + 4(F-1)] are bool; context
    [B, L, Dt] holds text rows (zero rows are attended); video_latents [B, Cz, F, h, w]; history_latents
    [B, M, Cz, h, w] right-aligned with history_valid_len [B]; *_frame_ids [B, F or M] are temporal positions;
    chunk_latents [B, C, Cz, h, w] is the image at each chunk's start.
    """

    actions: Tensor
    action_is_pad: Tensor
    proprio: Tensor
    context: Tensor
    video_latents: Tensor
    image_is_pad: Tensor
    video_frame_ids: Tensor
    history_latents: Tensor
    history_frame_ids: Tensor
    history_valid_len: Tensor
    chunk_latents: Tensor

    def to(self, device: torch.device | str) -> LossBatch:
        """The same batch on another device."""
        return LossBatch(*(getattr(self, f.name).to(device) for f in fields(self)))

    def rows(self, rows: slice) -> LossBatch:
        """Some of the samples."""
        return LossBatch(*(getattr(self, f.name)[rows] for f in fields(self)))

    def widened(self, size: int) -> LossBatch:
        """As if it had `size` samples, without memory: for draws that look at nothing but shapes."""
        return LossBatch(*(getattr(self, f.name)[:1].expand(size, *getattr(self, f.name).shape[1:]) for f in fields(self)))


@dataclass(frozen=True)
class Noise:
    """Draws of one loss: video [B, Cz, F, h, w] at video_timestep [B]; action [B, K, horizon, A] at action_timestep [B, K, C].

    K is the number of action draws per context.  prefix_rows [B, K, C]: leading rows of each chunk that the network is given
    clean, at timestep 0, and not judged by; None: none anywhere, as released.
    """

    video: Tensor
    video_timestep: Tensor
    action: Tensor
    action_timestep: Tensor
    prefix_rows: Tensor | None = None

    def rows(self, rows: slice) -> Noise:
        """That of some of the samples."""
        parts = (getattr(self, f.name) for f in fields(self))
        return Noise(*(part if part is None else part[rows] for part in parts))

    def rounded(self, tables: TableDtype) -> Noise:
        """The same draws at timesteps rounded as `tables` are, which weights of that kind have only ever seen."""
        if tables == "float32":
            return self
        times = {name: getattr(self, name).bfloat16().float() for name in ("video_timestep", "action_timestep")}
        return replace(self, **times)

    def to(self, device: torch.device | str) -> Noise:
        """The same draws on another device."""
        parts = (getattr(self, f.name) for f in fields(self))
        return Noise(*(part if part is None else part.to(device) for part in parts))


@dataclass(frozen=True)
class Predictions:
    """Network outputs of one loss: velocities of the video [B, Cz, F, h, w] and of the actions [B, K, horizon, A]."""

    video: Tensor
    action: Tensor


@dataclass(frozen=True)
class Losses:
    """Velocity errors of one loss, one number per sample [B], each weighted by its timesteps already.

    Batches of any split add up: `total` of a whole batch is the mean of those of its samples.  The lambdas weigh the two parts.
    """

    video_per_sample: Tensor
    action_per_sample: Tensor
    lambda_video: float
    lambda_action: float

    @property
    def video(self) -> Tensor:
        """Scalar, mean over the samples."""
        return self.video_per_sample.mean()

    @property
    def action(self) -> Tensor:
        """Scalar, mean over the samples."""
        return self.action_per_sample.mean()

    @property
    def total(self) -> Tensor:
        """What is minimised: the weighted sum of both."""
        return self.lambda_video * self.video + self.lambda_action * self.action


def draw_noise(
    batch: LossBatch, generator: torch.Generator, num_action_draws: int = 1, shift: float = 5.0, max_prefix: int = 0
) -> Noise:
    """Gaussian noise and shifted uniform timesteps; one video time per sample, one action time per sample, draw and chunk.

    With max_prefix also how many rows of each chunk are given, 0..max_prefix; without it nothing more is drawn.
    """
    b, horizon, action_dim = batch.actions.shape
    device, k, c = generator.device, num_action_draws, batch.proprio.shape[1]
    noise = Noise(
        video=torch.randn(batch.video_latents.shape, generator=generator, device=device),
        video_timestep=draw_timesteps((b,), generator, shift),
        action=torch.randn((b, k, horizon, action_dim), generator=generator, device=device),
        action_timestep=draw_timesteps((b, k, c), generator, shift),
        prefix_rows=draw_prefix_rows((b, k, c), max_prefix, generator) if max_prefix else None,
    )
    return noise.to(batch.actions.device)


def noisy_video(batch: LossBatch, noise: Noise) -> tuple[Tensor, Tensor]:
    """What the planner is given: latents [B, Cz, F, h, w], noisy but for the current frame, and a timestep per frame [B, F]."""
    latents = add_noise(batch.video_latents, noise.video, noise.video_timestep[:, None, None, None, None])
    latents = torch.cat([batch.video_latents[:, :, :1], latents[:, :, 1:]], dim=2)
    is_future = torch.arange(latents.shape[2], device=latents.device) > 0
    return latents, noise.video_timestep[:, None] * is_future


def noisy_actions(batch: LossBatch, noise: Noise) -> tuple[Tensor, Tensor]:
    """What the executor is given: actions [B, K, horizon, A] and timesteps [B, K, C], or [B, K, C, T] where rows are clean."""
    noisy = add_noise(batch.actions[:, None], noise.action, _per_token(noise.action_timestep, batch)[..., None])
    if noise.prefix_rows is None:
        return noisy, noise.action_timestep
    mask = prefix_mask(noise.prefix_rows, batch.actions.shape[1] // noise.prefix_rows.shape[-1])
    return restore_prefix(noisy, batch.actions[:, None], mask.flatten(2)), prefix_timesteps(noise.action_timestep, mask)


def joint_losses(prediction: Predictions, batch: LossBatch, noise: Noise, config: WamConfig) -> Losses:
    """Errors of both velocities, each weighted by its timestep; padding and given rows are not judged."""
    video = video_loss(prediction.video, batch, noise) * loss_weight(noise.video_timestep, config.train_shift)
    weight = loss_weight(_per_token(noise.action_timestep, batch), config.train_shift)
    target = velocity_target(batch.actions[:, None], noise.action)
    error = (prediction.action.float() - target).pow(2).mean(-1) * weight
    if noise.prefix_rows is None:
        action = masked_mean(error.mean(1), ~batch.action_is_pad)
    else:
        given = prefix_mask(noise.prefix_rows, config.chunk_size).flatten(2)
        action = masked_mean(error.flatten(1), (~batch.action_is_pad[:, None] & ~given).flatten(1))
    return Losses(video, action, config.lambda_video, config.lambda_action)


def video_loss(prediction: Tensor, batch: LossBatch, noise: Noise) -> Tensor:
    """Per-sample [B] mean squared velocity error of the future latents; a latent counts unless all its images are padding."""
    error = (prediction.float() - velocity_target(batch.video_latents, noise.video))[:, :, 1:].pow(2).mean((1, 3, 4))
    valid = ~batch.image_is_pad[:, 1:].unflatten(1, (error.shape[1], -1)).all(-1)
    return masked_mean(error, valid)


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over the last axis [..., N] of the valid entries; 0 where none is."""
    weight = valid.to(values.dtype)
    return (values * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def _per_token(timestep: Tensor, batch: LossBatch) -> Tensor:
    """Timesteps [B, K, C] -> [B, K, horizon]."""
    return timestep.repeat_interleave(batch.actions.shape[1] // timestep.shape[-1], -1)

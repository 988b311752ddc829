"""The joint training loss on latents: video velocity of the planner, action velocity of the executor.

The action branch reads the planner's keys and values of the current (clean) frame from the same pass, without
detaching, so the action loss trains the planner and the router too.  History is context only: no gradient enters it.
Noise and timesteps are inputs; `draw_noise` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgewam.flow.prefix import prefix_mask, prefix_timesteps, restore_prefix
from edgewam.flow.training import add_noise, loss_weight, velocity_target
from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.dit_block import KeyValue
from edgewam.models.flow_loss import LossBatch, Losses, Noise, masked_mean, video_loss
from edgewam.models.masks import bias_of, frame_causal, history_frames


@dataclass(frozen=True)
class Predictions:
    """Network outputs of one loss: velocities of the video [B, Cz, F, h, w] and of the actions [B, K, horizon, A]."""

    video: Tensor
    action: Tensor


def predict(model: AhaWam, batch: LossBatch, noise: Noise) -> Predictions:
    """One planner pass over history and noisy clip, and K executor passes over its current frame."""
    text = model.planner.text_key_values(batch.context)
    history, history_bias = history_context(model, batch, text)
    latents = add_noise(batch.video_latents, noise.video, noise.video_timestep[:, None, None, None, None])
    latents = torch.cat([batch.video_latents[:, :, :1], latents[:, :, 1:]], dim=2)
    num_frames = latents.shape[2]
    timestep = noise.video_timestep[:, None] * (torch.arange(num_frames, device=latents.device) > 0)
    own_bias = bias_of(frame_causal(num_frames, model.config.frame_tokens)).to(latents.device)
    bias = (
        own_bias
        if history_bias is None
        else torch.cat([history_bias.expand(-1, -1, len(own_bias), -1), own_bias.expand(len(latents), 1, -1, -1)], -1)
    )
    video, context = model.planner.velocity(latents, timestep, model.video_rope(batch.video_frame_ids), text, history, bias)

    current = [(key[:, : model.config.frame_tokens], value[:, : model.config.frame_tokens]) for key, value in context]
    routed = route_chunks(model, batch.chunk_latents, current)
    words = chunk_text(model, batch.context, model.proprio_encoder(batch.proprio))
    noisy = add_noise(batch.actions[:, None], noise.action, _per_token(noise.action_timestep, batch)[..., None])
    timestep = noise.action_timestep
    if noise.prefix_rows is not None:
        mask = prefix_mask(noise.prefix_rows, model.config.chunk_size)
        noisy = restore_prefix(noisy, batch.actions[:, None], mask.flatten(2))
        timestep = prefix_timesteps(timestep, mask)
    return Predictions(video, chunk_velocity(model, noisy, timestep, routed, words))


def training_loss(model: AhaWam, batch: LossBatch, noise: Noise) -> Losses:
    """Joint loss of one batch."""
    config, prediction = model.config, predict(model, batch, noise)
    video = video_loss(prediction.video, batch, noise) * loss_weight(noise.video_timestep, config.train_shift)
    target = velocity_target(batch.actions[:, None], noise.action)
    error = (prediction.action.float() - target).pow(2).mean(-1) * loss_weight(
        _per_token(noise.action_timestep, batch), config.train_shift
    )
    if noise.prefix_rows is None:
        action = masked_mean(error.mean(1), ~batch.action_is_pad)
    else:
        judged = ~batch.action_is_pad[:, None] & ~prefix_mask(noise.prefix_rows, config.chunk_size).flatten(2)
        action = masked_mean(error.flatten(1), judged.flatten(1))
    return Losses(video, action, config.lambda_video, config.lambda_action)


def history_context(model: AhaWam, batch: LossBatch, text: list[KeyValue]) -> tuple[list[KeyValue] | None, Tensor | None]:
    """Per-layer keys and values of the history frames, without gradient, and the bias [B, 1, 1, M*tokens] of its readers."""
    num_frames, tokens = batch.history_latents.shape[1], model.config.frame_tokens
    if num_frames == 0:
        return None, None
    mask = history_frames(batch.history_valid_len, num_frames)
    bias = bias_of(mask).repeat_interleave(tokens, 1).repeat_interleave(tokens, 2)[:, None]
    with torch.no_grad():
        context = model.planner.context(
            batch.history_latents.transpose(1, 2), model.video_rope(batch.history_frame_ids), text, bias=bias
        )
    unread = ~mask[:, -1].repeat_interleave(tokens, 1)[:, None, None]
    return context, torch.zeros(unread.shape, device=unread.device).masked_fill(unread, float("-inf"))


def route_chunks(model: AhaWam, chunk_latents: Tensor, context: list[KeyValue]) -> list[KeyValue]:
    """Routed keys and values per layer [B*C, S, A]: each chunk's image latent [B, C, Cz, h, w] edits the sample's context."""
    chunks = chunk_latents.shape[1]
    repeated = [(key.repeat_interleave(chunks, 0), value.repeat_interleave(chunks, 0)) for key, value in context]
    return model.route(chunk_latents.flatten(0, 1), repeated)


def chunk_text(model: AhaWam, context: Tensor, proprio_tokens: Tensor) -> list[KeyValue]:
    """Executor cross-attention keys and values per layer [B*C, L + 1, A] of text rows [B, L, Dt] and state tokens [B, C, Dt].

    The text part is computed once per sample.
    """
    chunks = proprio_tokens.shape[1]
    words = model.executor.text_key_values(context)
    states = model.executor.text_key_values(proprio_tokens.flatten(0, 1).unsqueeze(1))
    return [
        (torch.cat([wk.repeat_interleave(chunks, 0), sk], 1), torch.cat([wv.repeat_interleave(chunks, 0), sv], 1))
        for (wk, wv), (sk, sv) in zip(words, states, strict=True)
    ]


def chunk_velocity(model: AhaWam, actions: Tensor, timestep: Tensor, routed: list[KeyValue], text: list[KeyValue]) -> Tensor:
    """Velocity of whole horizons [B, K, horizon, A]; routed and text are per layer [B*C, ...].

    timestep: [B, K, C], or [B, K, C, T] for every row of a chunk apart.
    """
    b, k, c = timestep.shape[:3]
    chunked = actions.unflatten(2, (c, -1)).transpose(1, 2)  # [B, C, K, T, A]: draws of a chunk share its keys
    chunk = torch.arange(c, device=actions.device).expand(b, c).repeat_interleave(k, 1).flatten()
    if k > 1:
        routed, text = (
            [(key.repeat_interleave(k, 0), value.repeat_interleave(k, 0)) for key, value in kv] for kv in (routed, text)
        )
    velocity = model.action_velocity(chunked.flatten(0, 2), timestep.transpose(1, 2).reshape(b * c * k, -1), chunk, routed, text)
    return velocity.unflatten(0, (b, c, k)).transpose(1, 2).flatten(2, 3)


def _per_token(timestep: Tensor, batch: LossBatch) -> Tensor:
    """Timesteps [B, K, C] -> [B, K, horizon]."""
    return timestep.repeat_interleave(batch.actions.shape[1] // timestep.shape[-1], -1)

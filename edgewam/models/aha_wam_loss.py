"""The joint training loss on latents: video velocity of the planner, action velocity of the executor; and the conditioning
that sampling and distillation start from.

The action branch reads the planner's keys and values of the current (clean) frame from the same pass, without
detaching, so the action loss trains the planner and the router too.  History is context only: no gradient enters it.
Noise and timesteps are inputs; `draw_noise` makes them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.chunks import chunk_text, chunk_velocity
from edgewam.models.dit_block import KeyValue
from edgewam.models.flow_loss import LossBatch, Losses, Noise, Predictions, joint_losses, noisy_actions, noisy_video
from edgewam.models.flow_ode import Conditioning
from edgewam.models.masks import bias_of, frame_causal, history_frames


def predict(model: AhaWam, batch: LossBatch, noise: Noise) -> Predictions:
    """One planner pass over history and noisy clip, and K executor passes over its current frame."""
    text = model.planner.text_key_values(batch.context)
    history, history_bias = history_context(model, batch, text)
    latents, timestep = noisy_video(batch, noise)
    own_bias = bias_of(frame_causal(latents.shape[2], model.config.frame_tokens)).to(latents.device)
    bias = (
        own_bias
        if history_bias is None
        else torch.cat([history_bias.expand(-1, -1, len(own_bias), -1), own_bias.expand(len(latents), 1, -1, -1)], -1)
    )
    video, context = model.planner.velocity(latents, timestep, model.video_rope(batch.video_frame_ids), text, history, bias)

    current = [(key[:, : model.config.frame_tokens], value[:, : model.config.frame_tokens]) for key, value in context]
    routed = route_chunks(model, batch.chunk_latents, current)
    words = chunk_text(model, batch.context, model.proprio_encoder(batch.proprio))
    return Predictions(video, chunk_velocity(model, *noisy_actions(batch, noise), routed, words))


def training_loss(model: AhaWam, batch: LossBatch, noise: Noise) -> Losses:
    """Joint loss of one batch."""
    return joint_losses(predict(model, batch, noise), batch, noise, model.config)


@torch.no_grad()
def condition(model: AhaWam, batch: LossBatch) -> Conditioning:
    """Conditioning from the current image, history and chunk images of a batch; the future frames are not needed."""
    text = model.planner.text_key_values(batch.context)
    history, history_bias = history_context(model, batch, text)
    if history_bias is not None:  # own tokens come after the history and see each other
        own = torch.zeros(*history_bias.shape[:-1], model.config.frame_tokens, device=history_bias.device)
        history_bias = torch.cat([history_bias, own], -1)
    table = model.video_rope(batch.video_frame_ids[:, :1])
    current = model.planner.context(batch.video_latents[:, :, :1], table, text, history, history_bias)
    routed = route_chunks(model, batch.chunk_latents, current)
    return Conditioning(routed, batch.context, model.proprio_encoder(batch.proprio))


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

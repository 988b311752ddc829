"""Action chunks of a batch of horizons, folded into the batch axis: their cross-attention context and their velocities.

Letters: B samples, C chunks of a horizon, K draws of each, T rows of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgewam.models.dit_block import KeyValue
from edgewam.models.wam_model import Wam


def chunk_text(model: Wam, context: Tensor, proprio_tokens: Tensor) -> list[KeyValue]:
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


def chunk_velocity(model: Wam, actions: Tensor, timestep: Tensor, routed: list[KeyValue], text: list[KeyValue]) -> Tensor:
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

"""AHA-WAM as a readable float32 reference: planner and executor (`Wam`), and the router between them.

Parameters carry the names of the released checkpoints (`mot`, `proprio_encoder`, `action_obs_visual_proj`,
`chunk_obs_query_encoder`).  The image VAE and the text encoder are not part of it: latents and text rows come in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewam.models.aha_wam_config import AhaWamConfig
from edgewam.models.dit_block import KeyValue
from edgewam.models.ovcr import KeyValueEditor, QueryEncoder, visual_projection
from edgewam.models.wam_model import MixtureOfTransformers, Wam


class RoutedTransformers(MixtureOfTransformers):
    """Both experts, the router's editor and the embedding that marks the action branch (its row 1)."""

    def __init__(self, config: AhaWamConfig) -> None:
        super().__init__(config)
        self.action_branch_embedding = nn.Parameter(torch.zeros(2, config.action_hidden_dim))
        self.chunk_kv_cache_editor = KeyValueEditor(
            config.num_layers, config.num_heads, config.attention_dim, config.text_dim, config.gate_init
        )


class AhaWam(Wam):
    """The whole network."""

    config: AhaWamConfig
    mot: RoutedTransformers

    def __init__(self, config: AhaWamConfig) -> None:
        super().__init__(config, RoutedTransformers(config))
        self.action_obs_visual_proj = visual_projection(config.latent_dim, config.text_dim)
        self.chunk_obs_query_encoder = QueryEncoder(config.text_dim, config.num_queries)

    @property
    def editor(self) -> KeyValueEditor:
        """The router's per-layer editor."""
        return self.mot.chunk_kv_cache_editor

    @property
    def branch(self) -> Tensor:
        """The vector [action_hidden_dim] added to every action token."""
        return self.mot.action_branch_embedding[1]

    def visual_tokens(self, latent: Tensor) -> Tensor:
        """Image latents [B, C, h, w] -> one visual token per latent pixel [B, h*w, text_dim]."""
        return self.action_obs_visual_proj(latent.flatten(2).transpose(1, 2))

    def route(self, latent: Tensor, context: list[KeyValue]) -> list[KeyValue]:
        """Planner context [B, S, A] per layer, edited by the newest image latent [B, C, h, w]."""
        return self.editor(context, self.chunk_obs_query_encoder(self.visual_tokens(latent)))

    def executor_text(self, context: Tensor, proprio: Tensor) -> list[KeyValue]:
        """Executor cross-attention keys and values [B, Lt + 1, A] of text rows [B, Lt, Dt] and one state [B, P]."""
        return self.executor.text_key_values(torch.cat([context, self.proprio_encoder(proprio).unsqueeze(1)], dim=1))

"""AHA-WAM as a readable float32 reference: planner, executor, router and their embeddings.

Parameters carry the names of the released checkpoints (`mot`, `proprio_encoder`, `action_obs_visual_proj`,
`chunk_obs_query_encoder`).  The image VAE and the text encoder are not part of it: latents and text rows come in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewam.models.aha_wam_config import AhaWamConfig
from edgewam.models.dit_block import KeyValue
from edgewam.models.ovcr import KeyValueEditor, QueryEncoder, visual_projection
from edgewam.models.rope import Rope, axis_angles, rope, video_angles
from edgewam.models.wan_dit import ActionDit, VideoDit


class MixtureOfTransformers(nn.Module):
    """Both experts, the router's editor and the embedding that marks the action branch (its row 1)."""

    def __init__(self, config: AhaWamConfig) -> None:
        super().__init__()
        shared = (config.attention_dim, config.num_heads, config.num_layers, config.text_dim, config.freq_dim)
        video = VideoDit(config.latent_dim, config.video_dim, config.video_ffn_dim, *shared)
        action = ActionDit(config.action_dim, config.action_hidden_dim, config.action_ffn_dim, *shared)
        self.action_branch_embedding = nn.Parameter(torch.zeros(2, config.action_hidden_dim))
        self.mixtures = nn.ModuleDict({"video": video, "action": action})
        self.chunk_kv_cache_editor = KeyValueEditor(
            config.num_layers, config.num_heads, config.attention_dim, config.text_dim, config.gate_init
        )


class AhaWam(nn.Module):
    """The whole network; its methods are the pieces that training, distillation, sampling and stages are made of."""

    def __init__(self, config: AhaWamConfig) -> None:
        super().__init__()
        self.config = config
        self.mot = MixtureOfTransformers(config)
        self.proprio_encoder = nn.Linear(config.proprio_dim, config.text_dim)
        self.action_obs_visual_proj = visual_projection(config.latent_dim, config.text_dim)
        self.chunk_obs_query_encoder = QueryEncoder(config.text_dim, config.num_queries)

    @property
    def planner(self) -> VideoDit:
        """The video DiT."""
        return self.mot.mixtures["video"]  # type: ignore[return-value]

    @property
    def executor(self) -> ActionDit:
        """The action DiT."""
        return self.mot.mixtures["action"]  # type: ignore[return-value]

    @property
    def editor(self) -> KeyValueEditor:
        """The router's per-layer editor."""
        return self.mot.chunk_kv_cache_editor

    @property
    def branch(self) -> Tensor:
        """The vector [action_hidden_dim] added to every action token."""
        return self.mot.action_branch_embedding[1]

    def video_rope(self, frame_ids: Tensor) -> Rope:
        """Planner table [..., F*tokens, K/2] for temporal positions [..., F]."""
        config = self.config
        return rope(video_angles(frame_ids, config.grid, config.rope_dims, config.rope_theta))

    def action_rope(self, positions: Tensor) -> Rope:
        """Executor table [..., K/2] for action indices [...] inside the horizon."""
        return rope(axis_angles(positions, self.config.head_dim, self.config.rope_theta))

    def visual_tokens(self, latent: Tensor) -> Tensor:
        """Image latents [B, C, h, w] -> one visual token per latent pixel [B, h*w, text_dim]."""
        return self.action_obs_visual_proj(latent.flatten(2).transpose(1, 2))

    def route(self, latent: Tensor, context: list[KeyValue]) -> list[KeyValue]:
        """Planner context [B, S, A] per layer, edited by the newest image latent [B, C, h, w]."""
        return self.editor(context, self.chunk_obs_query_encoder(self.visual_tokens(latent)))

    def executor_text(self, context: Tensor, proprio: Tensor) -> list[KeyValue]:
        """Executor cross-attention keys and values [B, Lt + 1, A] of text rows [B, Lt, Dt] and one state [B, P]."""
        return self.executor.text_key_values(torch.cat([context, self.proprio_encoder(proprio).unsqueeze(1)], dim=1))

    def action_velocity(
        self, actions: Tensor, timestep: Tensor, chunk: Tensor, routed: list[KeyValue], text: list[KeyValue]
    ) -> Tensor:
        """Velocity of noisy chunks [B, T, action_dim] at timestep [B, G] (G groups of rows) and chunk index [B] or []."""
        positions = chunk[..., None] * self.config.chunk_size + torch.arange(actions.shape[1], device=actions.device)
        return self.executor.velocity(actions, timestep, self.branch, self.action_rope(positions), routed, text)

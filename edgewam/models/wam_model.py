"""What the networks of all families share: both experts, the state token, rotary tables and the executor's velocity.

Parameters carry the names of the released checkpoints (`mot.mixtures.video`, `mot.mixtures.action`, `proprio_encoder`).  The
image VAE and the text encoder are not part of it: latents and text rows come in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewam.models.dit_block import KeyValue
from edgewam.models.rope import Rope, axis_angles, rope, video_angles
from edgewam.models.wam_config import WamConfig
from edgewam.models.wan_dit import ActionDit, VideoDit


class MixtureOfTransformers(nn.Module):
    """Both experts; their layers have one attention width, so the executor can read the planner's keys and values."""

    def __init__(self, config: WamConfig) -> None:
        super().__init__()
        shared = (config.attention_dim, config.num_heads, config.num_layers, config.text_dim, config.freq_dim)
        video = VideoDit(config.latent_dim, config.video_dim, config.video_ffn_dim, *shared)
        action = ActionDit(config.action_dim, config.action_hidden_dim, config.action_ffn_dim, *shared)
        self.mixtures = nn.ModuleDict({"video": video, "action": action})


class Wam(nn.Module):
    """Planner and executor; the methods are the pieces that training, distillation, sampling and stages are made of."""

    def __init__(self, config: WamConfig, mot: MixtureOfTransformers) -> None:
        super().__init__()
        self.config = config
        self.mot = mot
        self.proprio_encoder = nn.Linear(config.proprio_dim, config.text_dim)

    @property
    def planner(self) -> VideoDit:
        """The video DiT."""
        return self.mot.mixtures["video"]  # type: ignore[return-value]

    @property
    def executor(self) -> ActionDit:
        """The action DiT."""
        return self.mot.mixtures["action"]  # type: ignore[return-value]

    @property
    def branch(self) -> Tensor | None:
        """The vector [action_hidden_dim] added to every action token, where a family has one."""
        return None

    def video_rope(self, frame_ids: Tensor) -> Rope:
        """Planner table [..., F*tokens, K/2] for temporal positions [..., F]."""
        config = self.config
        return rope(video_angles(frame_ids, config.grid, config.rope_dims, config.rope_theta))

    def action_rope(self, positions: Tensor) -> Rope:
        """Executor table [..., K/2] for action indices [...] inside the horizon."""
        return rope(axis_angles(positions, self.config.head_dim, self.config.rope_theta))

    def action_velocity(
        self, actions: Tensor, timestep: Tensor, chunk: Tensor, routed: list[KeyValue], text: list[KeyValue]
    ) -> Tensor:
        """Velocity of noisy chunks [B, T, action_dim] at timestep [B, G] (G groups of rows) and chunk index [B] or [].

        routed: the planner's keys and values that the chunk reads, per layer [B, S, A]; text: cross-attention keys and values.
        """
        positions = chunk[..., None] * self.config.chunk_size + torch.arange(actions.shape[1], device=actions.device)
        return self.executor.velocity(actions, timestep, self.branch, self.action_rope(positions), routed, text)

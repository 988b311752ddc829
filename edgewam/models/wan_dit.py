"""The two diffusion transformers of the Wan family: the planner over video latents and the executor over actions.

Both share block, time and text embeddings; they differ in what goes in, what comes out and how positions turn.
State-dict keys are those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgewam.models.dit_block import DitBlock, KeyValue, layer_norm, modulate
from edgewam.models.rope import Rope


def sinusoid(timestep: Tensor, width: int) -> Tensor:
    """[cos, sin] embedding [..., width] of timesteps [...] in 0..1000; angles in float64, result in timestep's dtype."""
    half = width // 2
    frequency = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
    angle = timestep.to(torch.float64)[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1).to(timestep.dtype)


class DitStack(nn.Module):
    """Time embedding, text embedding and blocks: what planner and executor have in common."""

    def __init__(
        self, dim: int, ffn_dim: int, attention_dim: int, num_heads: int, num_layers: int, text_dim: int, freq_dim: int
    ) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(DitBlock(dim, ffn_dim, attention_dim, num_heads) for _ in range(num_layers))

    def embed_time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps [B, G] -> embedding [B, G, D] and block modulations [B, G, 6, D]."""
        embedding = self.time_embedding(sinusoid(timestep, self.freq_dim).to(self.time_embedding[0].weight.dtype))
        return embedding, self.time_projection(embedding).unflatten(-1, (6, -1))

    def text_key_values(self, context: Tensor) -> list[KeyValue]:
        """Cross-attention keys and values of every layer, each [B, Lt, A], from text context [B, Lt, text_dim]."""
        embedded = self.text_embedding(context)
        return [block.text_key_value(embedded) for block in self.blocks]


class VideoHead(nn.Module):
    """Modulated norm and projection of planner tokens to 2x2 latent pixels."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.head = nn.Linear(dim, out_dim)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, S, D], time embedding [B, G, D] -> [B, S, out_dim]."""
        shift, scale = (self.modulation.unsqueeze(1) + time.unsqueeze(2)).unbind(2)
        return self.head(modulate(layer_norm(x), shift, scale))


class VideoDit(DitStack):
    """The planner: tokens are 2x2 patches of latent frames, in (frame, row, column) order."""

    def __init__(self, latent_dim: int, dim: int, *sizes: int) -> None:
        super().__init__(dim, *sizes)
        self.patch_embedding = nn.Conv3d(latent_dim, dim, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        self.head = VideoHead(dim, 4 * latent_dim)

    def patchify(self, latents: Tensor) -> Tensor:
        """Latents [B, C, F, h, w] -> tokens [B, F*h/2*w/2, D]; the patch convolution as one matrix product."""
        b, c, f, h, w = latents.shape
        patches = latents.reshape(b, c, f, h // 2, 2, w // 2, 2).permute(0, 2, 3, 5, 1, 4, 6)
        weight = self.patch_embedding.weight.flatten(1)
        return nn.functional.linear(patches.reshape(b, -1, weight.shape[1]), weight, self.patch_embedding.bias)

    def unpatchify(self, x: Tensor, latent_shape: Sequence[int]) -> Tensor:
        """Head output [B, S, 4*C] -> latents of `latent_shape` [B, C, F, h, w]; channel is the fastest of the 4*C."""
        b, c, f, h, w = latent_shape
        return x.reshape(b, f, h // 2, w // 2, 2, 2, c).permute(0, 6, 1, 2, 4, 3, 5).reshape(b, c, f, h, w)

    def context(
        self,
        latents: Tensor,
        table: Rope,
        text: Sequence[KeyValue],
        before: Sequence[KeyValue] | None = None,
        bias: Tensor | None = None,
        text_bias: Tensor | None = None,
    ) -> list[KeyValue]:
        """Keys and values of clean frames (timestep 0), per layer [B, S, A]; work after the last of them is not done."""
        x = self.patchify(latents)
        _, time = self.embed_time(torch.zeros(len(x), 1, device=x.device))
        context = []
        for index, block in enumerate(self.blocks[:-1]):
            x, own = block(x, time, table, text[index], before and before[index], bias, text_bias)
            context.append(own)
        return [*context, self.blocks[-1].own_key_value(x, time, table)]

    def velocity(
        self,
        latents: Tensor,
        frame_timestep: Tensor,
        table: Rope,
        text: Sequence[KeyValue],
        before: Sequence[KeyValue] | None = None,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Velocity like latents [B, C, F, h, w] with a timestep per frame [B, F], and each layer's keys and values."""
        x = self.patchify(latents)
        embedding, time = self.embed_time(frame_timestep)
        context = []
        for index, block in enumerate(self.blocks):
            x, own = block(x, time, table, text[index], before and before[index], bias)
            context.append(own)
        return self.unpatchify(self.head(x, embedding), latents.shape), context


class ActionDit(DitStack):
    """The executor: one token per action step of a chunk; the output is a plain linear layer."""

    def __init__(self, action_dim: int, dim: int, *sizes: int) -> None:
        super().__init__(dim, *sizes)
        self.action_encoder = nn.Linear(action_dim, dim)
        self.head = nn.Linear(dim, action_dim)

    def velocity(
        self,
        actions: Tensor,
        timestep: Tensor,
        branch: Tensor | None,
        table: Rope,
        planner: Sequence[KeyValue],
        text: Sequence[KeyValue],
    ) -> Tensor:
        """Velocity like noisy actions [B, T, action_dim].

        timestep [B, G] for G equal groups of rows, branch [D] (if any) is added to every token, table [(B,) T, K/2], planner
        keys and values per layer [B, S, A] come before the own ones, text (with the proprio token) per layer [B, Lt, A].
        """
        x = self.action_encoder(actions)
        x = x if branch is None else x + branch
        _, time = self.embed_time(timestep)
        for block, before, words in zip(self.blocks, planner, text, strict=True):
            x, _ = block(x, time, table, words, before)
        return self.head(x)

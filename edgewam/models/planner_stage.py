"""The planner as a stage: a refresh that reads a memory, whole or as a group of its layers, and a prefill without one.

A refresh in layer groups (DESIGN section 8) lets action chunks pass between them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgewam.models.dit_block import DitBlock
from edgewam.models.stage_layers import CrossAttention, FeedForward, QueryKeyValue, Turn, apply, attention, frozen, modulated
from edgewam.models.wam_model import Wam
from edgewam.models.wan_dit import DitStack, VideoDit


class Memory(NamedTuple):
    """Contexts of earlier frames [slots, layers, 2, tokens, A], and the bias [slots] of each (-inf where a slot is free)."""

    contexts: Tensor
    bias: Tensor


def modulation_rows(stack: DitStack, timesteps: Tensor) -> Tensor:
    """Rows [T, layers, 6, D] float32 of timesteps [T]: shift, 1 + scale, gate of attention, then of the FFN."""
    with torch.no_grad():
        time = stack.embed_time(timesteps[:, None])[1][:, 0].float()  # [T, 6, D]
        rows = torch.stack([block.modulation[0].float() + time for block in stack.blocks], dim=1)  # type: ignore[union-attr]
    rows[:, :, (1, 4)] += 1
    return rows


class PlannerLayers(nn.Module):
    """The planner's layers at timestep 0; what follows the last layer's keys and values is left out."""

    def __init__(self, model: Wam) -> None:
        super().__init__()
        planner: VideoDit = model.planner
        self.num_heads = model.config.num_heads
        with torch.device("meta"):
            self.patch = nn.Linear(4 * model.config.latent_dim, model.config.video_dim)
        self.patch.weight = nn.Parameter(planner.patch_embedding.weight.detach().flatten(1), requires_grad=False)
        self.patch.bias = nn.Parameter(planner.patch_embedding.bias.detach(), requires_grad=False)  # type: ignore[union-attr]
        blocks: list[DitBlock] = list(planner.blocks)  # type: ignore[arg-type]
        self.qkv = nn.ModuleList(QueryKeyValue(block.self_attn) for block in blocks)
        self.out = nn.ModuleList(frozen(block.self_attn.o) for block in blocks[:-1])
        self.cross = nn.ModuleList(CrossAttention(block.norm3, block.cross_attn) for block in blocks[:-1])
        self.ffn = nn.ModuleList(FeedForward(block.ffn) for block in blocks[:-1])
        device = planner.patch_embedding.weight.device
        self.register_buffer("rows", modulation_rows(planner, torch.zeros(1, device=device))[0], persistent=False)
        self.rows: Tensor


class PrefillStage(PlannerLayers):
    """The keys and values of one frame; its text holds the state token too, and there is no memory.

    latent [Cz, h, w], text [layers, 2, R + 2, A], text_bias [R + 2], cos and sin [tokens, K/2] -> context
    [layers, 2, tokens, A].
    """

    def forward(self, latent: Tensor, text: Tensor, text_bias: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor]:
        """See the class."""
        return (_advance(self, embed(self.patch, latent), 0, None, text, text_bias, cos, sin)[1],)


class PlannerStage(PlannerLayers):
    """One planner refresh at timestep 0.

    latent [Cz, h, w], memory [slots, layers, 2, tokens, A], memory_bias [slots] (0 or -inf), text [layers, 2, R + 1, A],
    text_bias [R + 2], cos and sin [tokens, K/2] -> context [layers, 2, tokens, A].
    """

    def forward(
        self, latent: Tensor, memory: Tensor, memory_bias: Tensor, text: Tensor, text_bias: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor]:
        """See the class."""
        past = Memory(memory, memory_bias)
        return (_advance(self, embed(self.patch, latent), 0, past, text, text_bias[:-1], cos, sin)[1],)


class PlannerGroup(nn.Module):
    """Layers `first` to `last` - 1 of a planner; shares its layers.

    Takes the latent if `first` is 0, else hidden [tokens, Dv]; gives hidden [tokens, Dv] float32 unless it holds the last
    layer, and context [last - first, 2, tokens, A].  memory and text are those of the whole planner.
    """

    def __init__(self, planner: PlannerStage, first: int, last: int) -> None:
        super().__init__()
        self.num_heads, self.first = planner.num_heads, first
        self.patch = planner.patch if first == 0 else None
        self.qkv = nn.ModuleList(planner.qkv[first:last])
        self.out = nn.ModuleList(planner.out[first:last])
        self.cross = nn.ModuleList(planner.cross[first:last])
        self.ffn = nn.ModuleList(planner.ffn[first:last])
        self.register_buffer("rows", planner.rows[first:last], persistent=False)
        self.rows: Tensor

    def forward(
        self, hidden: Tensor, memory: Tensor, memory_bias: Tensor, text: Tensor, text_bias: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, ...]:
        """See the class."""
        x = hidden if self.patch is None else embed(self.patch, hidden)
        past = Memory(memory, memory_bias)
        x, context = _advance(self, x, self.first, past, text, text_bias[:-1], cos, sin)
        return (x, context) if len(self.ffn) == len(self.qkv) else (context,)


def embed(patch: nn.Linear, latent: Tensor) -> Tensor:
    """Tokens [h/2 * w/2, Dv] float32 of a latent [Cz, h, w]."""
    channels, height, width = latent.shape
    patches = latent.reshape(channels, height // 2, 2, width // 2, 2).permute(1, 3, 0, 2, 4)
    return apply(patch, patches.reshape(height * width // 4, 4 * channels)).float()


def _advance(
    stage: PlannerLayers | PlannerGroup, x: Tensor, first: int, past: Memory | None, text: Tensor, text_bias: Tensor,
    cos: Tensor, sin: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Tokens and context after the layers of `stage`, of which the first is layer `first` of the planner."""
    table = Turn.prepare(cos, sin)
    bias = None if past is None else _key_bias(past, cos)
    context = []
    for index, qkv in enumerate(stage.qkv):
        shift1, scale1, gate1, shift2, scale2, gate2 = stage.rows[index].unbind(0)
        q, own = qkv(modulated(x, shift1, scale1), table)
        context.append(own)
        if index == len(stage.ffn):
            break
        seen = own if past is None else torch.cat([past.contexts[:, first + index].transpose(0, 1).flatten(1, 2), own], dim=1)
        k, v = seen.unbind(0)  # [slots * tokens + tokens, A] each
        x = x + gate1 * apply(stage.out[index], attention(q, k, v, stage.num_heads, bias))
        x = x + stage.cross[index](x, text[first + index], text_bias)
        x = x + gate2 * stage.ffn[index](modulated(x, shift2, scale2))
    return x, torch.stack(context)


def _key_bias(past: Memory, cos: Tensor) -> Tensor:
    """Bias [slots * tokens + tokens] of all keys: a slot's on each of its tokens, 0 on the own ones."""
    slots, tokens = past.bias.shape[0], past.contexts.shape[3]
    return torch.cat([past.bias[:, None].expand(slots, tokens).reshape(-1), torch.zeros_like(cos[:, 0])])

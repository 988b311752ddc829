"""The compiled units that all families share, as modules of positional tensors (DESIGN section 3); their programs wire them.

Each equals the plain model's computation for one sample; what never changes at run time (timestep 0, branch embedding,
normalisation) is a constant inside, what changes per step or frame is an input row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewam.core.observation import CLAMP, Normalizer
from edgewam.models.dit_block import DitBlock
from edgewam.models.stage_layers import (
    CrossAttention,
    FeedForward,
    KeyValues,
    QueryKeyValue,
    Turn,
    apply,
    attention,
    frozen,
    merged,
    modulated,
)
from edgewam.models.wam_model import Wam
from edgewam.models.wan_dit import DitStack


class ImageStage(nn.Module):
    """uint8 image [H, W, 3] -> latent [Cz, h, w]; wraps the image encoder, which keeps a batch of one."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """See the class."""
        return (self.encoder(image)[0].float(),)


class TextStage(nn.Module):
    """Text rows [R, Dt] and key bias [R + 1] -> keys and values of planner and executor [layers, 2, R + 1, A], bias [R + 2].

    A zero row is appended for the padding key, and a bias of 0 for the state token that follows.
    """

    def __init__(self, model: Wam) -> None:
        super().__init__()
        for name, stack in (("planner", model.planner), ("executor", model.executor)):
            setattr(self, f"{name}_embedding", frozen_layers(stack.text_embedding))
            setattr(self, name, KeyValues([block.cross_attn for block in stack.blocks]))  # type: ignore[union-attr,misc]

    def forward(self, rows: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        rows = torch.cat([rows, torch.zeros_like(rows[:1])])
        planner = self.planner(run_layers(self.planner_embedding, rows))
        executor = self.executor(run_layers(self.executor_embedding, rows))
        return planner, executor, torch.cat([bias, torch.zeros_like(bias[:1])])


class StateStage(nn.Module):
    """Robot state [P] in its own units, a stack's text [layers, 2, R + 1, A] -> its keys and values [layers, 2, R + 2, A]."""

    def __init__(self, encoder: nn.Linear, stack: DitStack, normalizer: Normalizer) -> None:
        super().__init__()
        _constants(self, normalizer)
        self.encoder = frozen(encoder)
        self.embedding = frozen_layers(stack.text_embedding)
        self.key_values = KeyValues([block.cross_attn for block in stack.blocks])  # type: ignore[union-attr,misc]

    def forward(self, state: Tensor, text: Tensor) -> tuple[Tensor]:
        """See the class."""
        normalised = (state * self.scale + self.offset).clamp(-CLAMP, CLAMP)[None]
        own = self.key_values(run_layers(self.embedding, apply(self.encoder, normalised)))
        return (torch.cat([text, own], dim=2),)


class StatesStage(nn.Module):
    """Robot state [P] and both experts' text [layers, 2, R + 1, A] -> both experts' keys and values [layers, 2, R + 2, A]."""

    def __init__(self, model: Wam, normalizer: Normalizer) -> None:
        super().__init__()
        self.planner = StateStage(model.proprio_encoder, model.planner, normalizer)
        self.executor = StateStage(model.proprio_encoder, model.executor, normalizer)

    def forward(self, state: Tensor, planner_text: Tensor, executor_text: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        return self.planner(state, planner_text)[0], self.executor(state, executor_text)[0]


class BeginStage(nn.Module):
    """Noise [T, A] and prefix [T, A] in robot units with its mask [T] -> first sampler state and normalised prefix."""

    def __init__(self, normalizer: Normalizer) -> None:
        super().__init__()
        _constants(self, normalizer)

    def forward(self, noise: Tensor, prefix: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        normalised = (prefix * self.scale + self.offset).clamp(-CLAMP, CLAMP)
        return torch.where(mask[:, None], normalised, noise), normalised


class DenoiseStage(nn.Module):
    """One solver step of one chunk; rows of the prefix run at timestep 0 and are put back.

    x [T, A], time_row and clean_row [layers, 6, Da], delta [1], routed [layers, 2, tokens, A], cross [layers, 2, R + 2, A],
    cross_bias [R + 2], cos and sin [T, K/2], prefix [T, A], mask [T] bool -> x [T, A].
    """

    def __init__(self, model: Wam) -> None:
        super().__init__()
        executor = model.executor
        self.num_heads = model.config.num_heads
        self.encoder = merged(executor.action_encoder)
        if model.branch is not None:
            self.encoder.bias = nn.Parameter(self.encoder.bias + model.branch.detach(), requires_grad=False)
        self.head = frozen(executor.head)
        blocks: list[DitBlock] = list(executor.blocks)  # type: ignore[arg-type]
        self.qkv = nn.ModuleList(QueryKeyValue(block.self_attn) for block in blocks)
        self.out = nn.ModuleList(frozen(block.self_attn.o) for block in blocks)
        self.cross = nn.ModuleList(CrossAttention(block.norm3, block.cross_attn) for block in blocks)
        self.ffn = nn.ModuleList(FeedForward(block.ffn) for block in blocks)

    def forward(
        self,
        x: Tensor,
        time_row: Tensor,
        clean_row: Tensor,
        delta: Tensor,
        routed: Tensor,
        cross: Tensor,
        cross_bias: Tensor,
        cos: Tensor,
        sin: Tensor,
        prefix: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor]:
        """See the class."""
        rows = torch.where(mask[:, None], clean_row[:, :, None], time_row[:, :, None])  # [layers, 6, T, Da]
        table = Turn.prepare(cos, sin)
        h = apply(self.encoder, x).float()
        for index, qkv in enumerate(self.qkv):
            shift1, scale1, gate1, shift2, scale2, gate2 = rows[index].unbind(0)
            q, own = qkv(modulated(h, shift1, scale1), table)
            k, v = torch.cat([routed[index], own], dim=1).unbind(0)
            h = h + gate1 * apply(self.out[index], attention(q, k, v, self.num_heads))
            h = h + self.cross[index](h, cross[index], cross_bias)
            h = h + gate2 * self.ffn[index](modulated(h, shift2, scale2))
        return (torch.where(mask[:, None], prefix, x + delta * apply(self.head, h).float()),)


class FinishStage(nn.Module):
    """Normalised chunk [T, A] -> actions [T, A] in robot units."""

    def __init__(self, normalizer: Normalizer) -> None:
        super().__init__()
        _constants(self, normalizer)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """See the class."""
        return ((x - self.offset) / self.scale,)


def _constants(module: nn.Module, normalizer: Normalizer) -> None:
    module.register_buffer("scale", torch.from_numpy(normalizer.scale), persistent=False)
    module.register_buffer("offset", torch.from_numpy(normalizer.offset), persistent=False)


def frozen_layers(layers: nn.Module) -> nn.ModuleList:
    """The layers of a Sequential with their linear layers frozen; norms and activations are shared."""
    return nn.ModuleList(frozen(layer) if isinstance(layer, nn.Linear | nn.LayerNorm) else layer for layer in layers)  # type: ignore[union-attr,arg-type]


def run_layers(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """Run layers; those with weights in their weights' dtype."""
    for layer in layers:
        x = apply(layer, x) if isinstance(layer, nn.Linear | nn.LayerNorm) else layer(x)
    return x

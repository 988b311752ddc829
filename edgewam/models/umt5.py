"""The UMT5 encoder as Wan2.2 stores it: a T5 v1.1 encoder whose every layer has its own relative positions.

Key names are those of Wan's file `models_t5_umt5-xxl-enc-bf16.pth`; the places where bf16 values are rounded are those of
its network, because policies were trained on what comes out of it.  Source: facts/aha_wam.md 1.8; no dropout, no decoder.
Letters: B batch, L tokens, D width, A attention width, N heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgewam.models.dit_block import RmsNorm

MAX_DISTANCE = 128  # tokens; all that are further away share the last bucket


@dataclass(frozen=True)
class Umt5Config:
    """Sizes; the defaults are UMT5-XXL."""

    vocab_size: int = 256384
    dim: int = 4096
    attention_dim: int = 4096
    ffn_dim: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32


class Attention(nn.Module):
    """Self-attention without biases and without scaling: T5 puts the scale into the initialisation of q."""

    def __init__(self, dim: int, attention_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, attention_dim, bias=False)
        self.k = nn.Linear(dim, attention_dim, bias=False)
        self.v = nn.Linear(dim, attention_dim, bias=False)
        self.o = nn.Linear(attention_dim, dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, L, D]; bias [B or 1, N, L, L] is added to the logits."""
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-1, -2) + bias).float().softmax(-1).to(v.dtype)
        return self.o((weights @ v).transpose(1, 2).flatten(-2))


class TanhGelu(nn.Module):
    """The tanh form of GELU written out, so that bf16 is rounded after every operation as in Wan's network."""

    def forward(self, x: Tensor) -> Tensor:
        """x [...] -> same shape and dtype."""
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class GatedFfn(nn.Module):
    """fc2(fc1(x) * gelu(gate(x)))."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(dim, ffn_dim, bias=False), TanhGelu())
        self.fc1 = nn.Linear(dim, ffn_dim, bias=False)
        self.fc2 = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, D] -> same shape."""
        return self.fc2(self.fc1(x) * self.gate(x))


def relative_buckets(length: int, num_buckets: int) -> Tensor:
    """Bucket int64 [L, L] of key position minus query position: half of them for keys after the query.

    In each half, the first half counts single tokens; the rest grow logarithmically up to MAX_DISTANCE.
    """
    positions = torch.arange(length)
    offset = positions[None, :] - positions[:, None]
    half, exact = num_buckets // 2, num_buckets // 4
    distance = offset.abs()
    fraction = torch.log(distance.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact)
    far = (exact + (fraction * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (offset > 0)


class RelativePositions(nn.Module):
    """One learned bias per head and bucket; each layer has its own."""

    def __init__(self, num_buckets: int, num_heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_buckets, num_heads)

    def forward(self, buckets: Tensor) -> Tensor:
        """Buckets [L, L] -> bias [1, N, L, L]."""
        return self.embedding(buckets).permute(2, 0, 1)[None]


class Block(nn.Module):
    """x + attention(norm1(x)), then x + ffn(norm2(x))."""

    def __init__(self, config: Umt5Config) -> None:
        super().__init__()
        self.norm1 = RmsNorm(config.dim)
        self.attn = Attention(config.dim, config.attention_dim, config.num_heads)
        self.norm2 = RmsNorm(config.dim)
        self.ffn = GatedFfn(config.dim, config.ffn_dim)
        self.pos_embedding = RelativePositions(config.num_buckets, config.num_heads)

    def forward(self, x: Tensor, buckets: Tensor, is_key: Tensor) -> Tensor:
        """x [B, L, D]; is_key [B, 1, 1, L] is False for padding, which nobody attends to."""
        bias = self.pos_embedding(buckets).masked_fill(~is_key, -torch.inf)
        x = x + self.attn(self.norm1(x), bias)
        return x + self.ffn(self.norm2(x))


class Umt5(nn.Module):
    """Token ids in, one vector per token out."""

    def __init__(self, config: Umt5Config) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RmsNorm(config.dim)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids int64 [B, L], mask bool [B, L] (True: a token, at least one per row) -> [B, L, D] in the weights' dtype.

        Rows of padding hold something; whoever uses them must leave them out.
        """
        buckets = relative_buckets(ids.shape[1], self.config.num_buckets).to(ids.device)
        is_key = mask[:, None, None, :]
        x = self.token_embedding(ids)
        for block in self.blocks:
            x = block(x, buckets, is_key)
        return self.norm(x)

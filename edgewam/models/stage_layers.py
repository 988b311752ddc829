"""Layers of compiled stages: one sample, no batch axis, projections of one input merged, modulation as table rows.

Rules for numerics: the residual stream, norms, rotations and softmax inputs are in the stage's float type as they come
(float32 when tables are), matrix products are in the weights' dtype.  Letters: S tokens, A attention width, N heads,
K head width.  Everything here is compared with the plain model by tests/contracts/test_family.py.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewam.models.dit_block import NORM_EPS, Attention, layer_norm


def apply(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer in the dtype of its weight."""
    return layer(x.to(layer.weight.dtype))  # type: ignore[arg-type]


def merged(*layers: nn.Linear) -> nn.Linear:
    """One linear layer whose output is the outputs of `layers` side by side; weights are copied, products are unchanged."""
    first = layers[0]
    with torch.device("meta"):
        out = nn.Linear(first.in_features, sum(layer.out_features for layer in layers))
    out.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]), requires_grad=False)
    out.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]), requires_grad=False)
    return out


def frozen(layer: nn.Linear) -> nn.Linear:
    """The same layer, sharing memory, without gradient and without ties to the training model's module tree."""
    out = copy.copy(layer)
    out._parameters = {name: nn.Parameter(p.detach(), requires_grad=False) for name, p in layer.named_parameters(recurse=False)}
    return out


def rms(x: Tensor) -> Tensor:
    """RMS norm without weights over the last axis, in float32; written as pow-mean-sqrt-div, which runtimes fuse."""
    x = x.float()
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + NORM_EPS)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[S, A] -> [N, S, K]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(0, 1)


def attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, bias: Tensor | None = None) -> Tensor:
    """Attention of scaled queries [Sq, A] over k, v [Sk, A] -> [Sq, A]; bias [Sk] is added to every row of logits."""
    q, k, v = split_heads(q, num_heads).to(v.dtype), split_heads(k, num_heads).to(v.dtype), split_heads(v, num_heads)
    logits = q @ k.transpose(1, 2)
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    return (logits.float().softmax(-1).to(v.dtype) @ v).transpose(0, 1).flatten(1)


class Turn(nn.Module):
    """Prepares a rotary table once per call, and turns interleaved pairs with it."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        partner = torch.zeros(head_dim, head_dim)
        even = torch.arange(0, head_dim, 2)
        partner[even + 1, even], partner[even, even + 1] = -1.0, 1.0  # (a, b) -> (-b, a), exact as a product
        self.register_buffer("partner", partner, persistent=False)
        self.partner: Tensor

    @staticmethod
    def prepare(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """cos, sin [S, K/2] -> both [S, 1, 1, K], one entry per channel."""
        return tuple(torch.stack([t, t], -1).flatten(1)[:, None, None] for t in (cos, sin))  # type: ignore[return-value]

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """x [S, P, A] (P kinds, such as queries and keys) -> the same, turned."""
        cos, sin = table
        split = x.unflatten(-1, (-1, cos.shape[-1]))
        return (split * cos + (split @ self.partner) * sin).flatten(-2)


class QueryKeyValue(nn.Module):
    """Queries (scaled for the logits), keys and values of a self-attention from one matrix product."""

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        width = attn.q.out_features
        head_dim = width // attn.num_heads
        self.width = width
        self.project = merged(attn.q, attn.k, attn.v)
        gains = torch.stack([attn.norm_q.weight.detach().float() * head_dim**-0.5, attn.norm_k.weight.detach().float()])
        self.register_buffer("gains", gains, persistent=False)
        self.gains: Tensor
        self.turn = Turn(head_dim)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """x [S, D] -> queries [S, A], and keys and values [2, S, A] in the weights' dtype."""
        out = apply(self.project, x)
        qk, v = out.split([2 * self.width, self.width], dim=-1)
        q, k = self.turn(rms(qk.unflatten(-1, (2, self.width))) * self.gains, table).unbind(1)
        return q, torch.stack([k.to(v.dtype), v])


class KeyValues(nn.Module):
    """Normed cross-attention keys and values of all layers from one matrix product."""

    def __init__(self, layers: list[Attention]) -> None:
        super().__init__()
        self.project = merged(*(part for attn in layers for part in (attn.k, attn.v)))
        self.register_buffer("gains", torch.stack([a.norm_k.weight.detach().float() for a in layers]), persistent=False)
        self.gains: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Embedded rows [S, D] -> [layers, 2, S, A]."""
        out = apply(self.project, x).unflatten(-1, (len(self.gains), 2, -1))
        k, v = out.unbind(2)
        return torch.stack([(rms(k) * self.gains).to(v.dtype), v], dim=2).permute(1, 2, 0, 3)


class CrossAttention(nn.Module):
    """Text cross-attention over ready keys and values; its own affine norm in front."""

    def __init__(self, norm: nn.LayerNorm, attn: Attention) -> None:
        super().__init__()
        self.num_heads = attn.num_heads
        self.query, self.out = frozen(attn.q), frozen(attn.o)
        gain = attn.norm_q.weight.detach().float() * (attn.q.out_features // attn.num_heads) ** -0.5
        for name, value in (("gain", gain), ("norm_weight", norm.weight.detach()), ("norm_bias", norm.bias.detach())):
            self.register_buffer(name, value, persistent=False)
        self.gain: Tensor
        self.norm_weight: Tensor
        self.norm_bias: Tensor

    def forward(self, x: Tensor, kv: Tensor, bias: Tensor) -> Tensor:
        """x [S, D], kv [2, Sk, A], bias [Sk] -> update [S, D]."""
        normed = F.layer_norm(x, x.shape[-1:], self.norm_weight.to(x.dtype), self.norm_bias.to(x.dtype), NORM_EPS)
        q = rms(apply(self.query, normed)) * self.gain
        return apply(self.out, attention(q, kv[0], kv[1], self.num_heads, bias))


class FeedForward(nn.Module):
    """The block's FFN."""

    def __init__(self, ffn: nn.Sequential) -> None:
        super().__init__()
        self.up, self.down = frozen(ffn[0]), frozen(ffn[2])  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """x [S, D] -> update [S, D]."""
        return apply(self.down, F.gelu(apply(self.up, x), approximate="tanh"))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) * scale + shift; scale already holds the 1.  Both broadcast to x [S, D]."""
    return layer_norm(x) * scale + shift

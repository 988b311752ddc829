"""The transformer block that planner and executor share: modulated self-attention, text cross-attention, GELU FFN.

Written for reading and for speed on any device: no masks as booleans, no autocast, attention as two plain matrix
products (at these token counts faster on CPUs than the flash kernel, and it exports).  Letters: B batch, S tokens,
D hidden width, A attention width, N heads, K head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewam.models.rope import Rope, rotate

NORM_EPS = 1e-6
KeyValue = tuple[Tensor, Tensor]  # keys (normed, rotated) and values, each [B, S, A]


class RmsNorm(nn.Module):
    """RMS norm over the whole attention width, all heads together; computed in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., dim] -> same shape and dtype as weight and x promote to."""
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + NORM_EPS)
        return (wide * scale).to(x.dtype) * self.weight


def layer_norm(x: Tensor) -> Tensor:
    """Layer norm without weights over the last axis."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, bias: Tensor | None = None) -> Tensor:
    """Multi-head attention of q [B, Sq, A] over k, v [B, Sk, A]; bias broadcasts to [B, N, Sq, Sk] and is added to the logits."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias.to(logits.dtype)  # 0 and -inf are exact in every dtype
    return (logits.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(-2)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift.  x [B, S, D]; shift, scale [B, G, D] for G equal groups of consecutive tokens."""
    grouped = x.unflatten(1, (shift.shape[1], -1))
    return torch.addcmul(shift.unsqueeze(2), grouped, 1 + scale.unsqueeze(2)).flatten(1, 2)


def add_gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + gate * update.  x, update [B, S, D]; gate [B, G, D] for G equal groups of consecutive tokens."""
    groups = (gate.shape[1], -1)
    return torch.addcmul(x.unflatten(1, groups), update.unflatten(1, groups), gate.unsqueeze(2)).flatten(1, 2)


class Attention(nn.Module):
    """Projections of one attention: hidden -> A for q, k, v (RMS norm on q and k), A -> hidden for the output."""

    def __init__(self, dim: int, attention_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, attention_dim)
        self.k = nn.Linear(dim, attention_dim)
        self.v = nn.Linear(dim, attention_dim)
        self.o = nn.Linear(attention_dim, dim)
        self.norm_q = RmsNorm(attention_dim)
        self.norm_k = RmsNorm(attention_dim)

    def query(self, x: Tensor, table: Rope | None = None) -> Tensor:
        """Normed and, with a table, rotated queries [B, S, A]."""
        return self._place(self.norm_q(self.q(x)), table)

    def key_value(self, x: Tensor, table: Rope | None = None) -> KeyValue:
        """Normed and, with a table, rotated keys, and values: each [B, S, A]."""
        return self._place(self.norm_k(self.k(x)), table), self.v(x)

    def forward(self, q: Tensor, kv: KeyValue, bias: Tensor | None = None) -> Tensor:
        """Attend and project back to the hidden width."""
        return self.o(attend(q, *kv, self.num_heads, bias))

    def _place(self, x: Tensor, table: Rope | None) -> Tensor:
        if table is None:
            return x
        return rotate(x.unflatten(-1, (self.num_heads, -1)), table).flatten(-2)


class DitBlock(nn.Module):
    """One layer.  The self-attention may see keys and values of others (memory, history, planner) before its own."""

    ENTRIES = ("own_key_value", "text_key_value")  # methods that a caller uses beside forward

    def __init__(self, dim: int, ffn_dim: int, attention_dim: int, num_heads: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.self_attn = Attention(dim, attention_dim, num_heads)
        self.cross_attn = Attention(dim, attention_dim, num_heads)
        self.norm3 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))

    def modulations(self, time: Tensor) -> tuple[Tensor, ...]:
        """(shift, scale, gate) of attention, then of the FFN, each [B, G, D], from time projections [B, G, 6, D]."""
        return (self.modulation.unsqueeze(1) + time).unbind(2)

    def own_key_value(self, x: Tensor, time: Tensor, table: Rope) -> KeyValue:
        """Keys and values of the tokens themselves: all that a context pass needs of its last layer."""
        shift, scale, *_ = self.modulations(time)
        return self.self_attn.key_value(modulate(layer_norm(x), shift, scale), table)

    def text_key_value(self, text: Tensor) -> KeyValue:
        """Cross-attention keys and values, each [B, Lt, A], of embedded text [B, Lt, D]."""
        return self.cross_attn.key_value(text)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        table: Rope,
        text: KeyValue,
        before: KeyValue | None = None,
        bias: Tensor | None = None,
        text_bias: Tensor | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """Advance tokens x [B, S, D] by one layer; also returns their own keys and values.

        time [B, G, 6, D], table [(B,) S, K/2], text keys and values [B, Lt, A]; `before` are keys and values placed
        in front of the own ones; biases broadcast to [B, N, S, keys].
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulations(time)
        h = modulate(layer_norm(x), shift1, scale1)
        own = self.self_attn.key_value(h, table)
        seen = own if before is None else (torch.cat([before[0], own[0]], 1), torch.cat([before[1], own[1]], 1))
        x = add_gated(x, self.self_attn(self.self_attn.query(h, table), seen, bias), gate1)
        x = x + self.cross_attn(self.cross_attn.query(self.norm3(x)), text, text_bias)
        x = add_gated(x, self.ffn(modulate(layer_norm(x), shift2, scale2)), gate2)
        return x, own

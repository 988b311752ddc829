"""Observation-guided routing: the newest image edits the planner's keys and values before each action chunk.

`QueryEncoder` pools the image's visual tokens into a few queries; `KeyValueEditor` lets every layer's planner tokens
read what those queries route and adds a gated correction.  All norms here have weights and PyTorch's default eps,
all GELUs are exact (facts/aha_wam.md 1.4).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewam.models.dit_block import KeyValue, attend


def visual_projection(latent_dim: int, text_dim: int) -> nn.Sequential:
    """Latent pixels [..., latent_dim] -> visual tokens [..., text_dim]."""
    return nn.Sequential(nn.LayerNorm(latent_dim), nn.Linear(latent_dim, text_dim), nn.GELU(), nn.Linear(text_dim, text_dim))


class QueryEncoder(nn.Module):
    """Single-head pooling of visual tokens by learned queries, which are used raw."""

    def __init__(self, dim: int, num_queries: int) -> None:
        super().__init__()
        self.base_queries = nn.Parameter(torch.randn(1, 1, num_queries, dim) * 0.02)
        self.obs_key_proj = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        self.obs_value_proj = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.query_proj = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, visual: Tensor) -> Tensor:
        """Visual tokens [B, S, dim] -> routing queries [B, num_queries, dim]."""
        queries = self.base_queries[0].expand(len(visual), -1, -1)
        pooled = attend(queries, self.obs_key_proj(visual), self.obs_value_proj(visual), num_heads=1)
        return self.query_proj(pooled)


class KeyValueEditor(nn.Module):
    """Per-layer corrections of planner keys and values, each scaled by one learned gate."""

    def __init__(self, num_layers: int, num_heads: int, attention_dim: int, query_dim: int, gate_init: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.delta_gate = nn.Parameter(torch.full((num_layers,), gate_init))
        self.layer_query_proj = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(query_dim), nn.Linear(query_dim, attention_dim)) for _ in range(num_layers)
        )
        self.layer_delta_proj = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(attention_dim),
                nn.Linear(attention_dim, attention_dim),
                nn.GELU(),
                nn.Linear(attention_dim, 2 * attention_dim),
            )
            for _ in range(num_layers)
        )
        for projection in self.layer_delta_proj:
            nn.init.zeros_(projection[3].weight)  # an untrained router leaves the planner's context as it is
            nn.init.zeros_(projection[3].bias)

    def delta(self, layer: int, key: Tensor, value: Tensor, queries: Tensor) -> KeyValue:
        """Ungated corrections [B, S, A] for planner key, value [B, S, A] and routing queries [B, Q, query_dim]."""
        q = self.layer_query_proj[layer](queries)
        routed = attend(q, key, value, self.num_heads)
        read = attend(key, routed, routed, self.num_heads)
        delta_key, delta_value = self.layer_delta_proj[layer](read).chunk(2, dim=-1)
        return delta_key, delta_value

    def forward(self, context: list[KeyValue], queries: Tensor) -> list[KeyValue]:
        """Routed keys and values of every layer, shapes as `context`."""
        gates = self.delta_gate.sigmoid()
        routed = []
        for layer, (key, value) in enumerate(context):
            delta_key, delta_value = self.delta(layer, key, value, queries)
            routed.append((key + gates[layer] * delta_key, value + gates[layer] * delta_value))
        return routed

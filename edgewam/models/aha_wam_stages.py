"""The one compiled unit that only AHA-WAM has: the router, which edits the planner's context by the newest image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.ovcr import KeyValueEditor
from edgewam.models.stage_layers import attention
from edgewam.models.wam_stages import frozen_layers, run_layers


class RouterStage(nn.Module):
    """Latent of the newest image [Cz, h, w] and context [layers, 2, tokens, A] -> routed context, same shape."""

    def __init__(self, model: AhaWam) -> None:
        super().__init__()
        editor: KeyValueEditor = model.editor
        encoder = model.chunk_obs_query_encoder
        self.num_heads = model.config.num_heads
        self.visual = frozen_layers(model.action_obs_visual_proj)
        self.key = frozen_layers(encoder.obs_key_proj)
        self.value = frozen_layers(encoder.obs_value_proj)
        self.pooled = frozen_layers(encoder.query_proj)
        scaled = encoder.base_queries.detach()[0, 0] * model.config.text_dim**-0.5
        self.register_buffer("queries", scaled, persistent=False)
        self.queries: Tensor
        self.query_proj = nn.ModuleList(frozen_layers(layer) for layer in editor.layer_query_proj)  # type: ignore[arg-type]
        self.delta_proj = nn.ModuleList(frozen_layers(layer) for layer in editor.layer_delta_proj)  # type: ignore[arg-type]
        self.register_buffer("gates", editor.delta_gate.detach().sigmoid(), persistent=False)
        self.gates: Tensor

    def forward(self, latent: Tensor, context: Tensor) -> tuple[Tensor]:
        """See the class."""
        visual = run_layers(self.visual, latent.flatten(1).transpose(0, 1))
        pooled = attention(self.queries, run_layers(self.key, visual), run_layers(self.value, visual), num_heads=1)
        queries = run_layers(self.pooled, pooled)
        width = context.shape[-1]
        scale = (width // self.num_heads) ** -0.5
        routed = []
        for index, (query, delta) in enumerate(zip(self.query_proj, self.delta_proj, strict=True)):
            k, v = context[index].unbind(0)
            read = attention(run_layers(query, queries) * scale, k, v, self.num_heads)
            back = attention(k * scale, read, read, self.num_heads)
            change = run_layers(delta, back).unflatten(-1, (2, width)).transpose(0, 1)
            routed.append(context[index] + self.gates[index] * change)
        return (torch.stack(routed),)

"""The smallest Fast-WAM in which every part is alive: weights as in `tiny_aha_wam`, and its normalizers and text rows."""

from dataclasses import replace

import torch

from edgewam.models import fast_wam
from tests.runtime.tiny_aha_wam import PROMPT, tiny_parts

__all__ = ["PROMPT", "tiny_fast_parts"]


def tiny_fast_parts():
    """(model, image encoder, state normalizer, action normalizer, text rows), the same each time."""
    _, encoder, state, action, text = tiny_parts()
    config = replace(
        fast_wam.small(), num_layers=2, num_heads=2, head_dim=12, video_dim=16, video_ffn_dim=32, action_hidden_dim=16,
        action_ffn_dim=32, text_dim=16, text_len=6, freq_dim=8, image_height=96, image_width=64, horizon=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = fast_wam.build(config).requires_grad_(False).eval()
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.3)
    return model, encoder, state, action, text

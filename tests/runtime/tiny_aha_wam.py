"""The smallest AHA-WAM in which every part is alive, with its image encoder, normalizers and text rows."""

from dataclasses import replace

import numpy as np
import torch

from edgewam.core.observation import Normalizer
from edgewam.models import aha_wam
from edgewam.models.text import SmallTextEncoder
from edgewam.models.wan_vae import WanVae, WanVaeConfig
from edgewam.models.wan_vae_image import image_encoder

PROMPT = "pass the red cube"
MEMORY_SLOTS = 2


def tiny_parts():
    """(model, image encoder, state normalizer, action normalizer, text rows), the same each time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = replace(
        aha_wam.small(), num_layers=2, num_heads=2, head_dim=12, video_dim=16, video_ffn_dim=32, action_hidden_dim=16,
        action_ffn_dim=32, text_dim=16, text_len=6, freq_dim=8, image_height=96, image_width=64, horizon=48, num_queries=3,
        memory_slots=MEMORY_SLOTS,
    )  # fmt: skip
    model = aha_wam.build(config).requires_grad_(False).eval()
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.3)
    encoder = image_encoder(WanVae(WanVaeConfig(dim=4, dec_dim=4)))
    rng = np.random.default_rng(0)
    state, action = (
        Normalizer(rng.normal(size=14).astype(np.float32), rng.uniform(0.5, 2, 14).astype(np.float32)) for _ in range(2)
    )
    return model, encoder, state, action, SmallTextEncoder(config.text_dim, config.text_len).encode(PROMPT)

"""Every size of an AHA-WAM, the presets `full` and `small`, and plain-JSON forms.

Sources: facts/aha_wam.md section 1 for `full`, DESIGN section 5 for `small`.  Lengths are tokens, horizons and offsets
are control steps, images are pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgewam.models.wam_config import WamConfig, released_sizes


@dataclass(frozen=True)
class AhaWamConfig(WamConfig):
    """Sizes of planner and executor (`WamConfig`), of the router between them, of the memory and of the chunks.

    `rope_stride` is the number of control steps per temporal position of the planner.  `gate_init` is where the router's
    gates start in training, before the sigmoid.
    """

    chunk_size: int = 16
    num_queries: int = 32
    memory_slots: int = 6
    rope_stride: int = 8
    gate_init: float = -4.0


def full(horizon: int = 64) -> AhaWamConfig:
    """The 7.35 billion parameter model of the paper; horizon 80 is the variant trained with action offsets."""
    return AhaWamConfig(horizon=horizon)


def small() -> AhaWamConfig:
    """The 14-DoF ALOHA policy that ships with the repository."""
    return AhaWamConfig(
        num_layers=4,
        num_heads=4,
        head_dim=48,
        video_dim=192,
        video_ffn_dim=768,
        action_hidden_dim=128,
        action_ffn_dim=512,
        text_dim=128,
        text_len=16,
        freq_dim=64,
        image_height=192,
        image_width=160,
        horizon=80,
        num_queries=8,
        gate_init=0.0,  # a short training must not spend its steps on opening the router
    )


def from_release_json(data: Mapping[str, Any]) -> AhaWamConfig:
    """Sizes from a released-style configuration file (`golden_sizes`, `video_dit_config`, `action_dit_config`, ...)."""
    sizes = data["golden_sizes"]
    height, width = sizes["image_hw"]
    return AhaWamConfig(
        **released_sizes(data),
        text_len=sizes["context_len"],
        image_height=height,
        image_width=width,
        chunk_size=data["action_chunk_size"],
        num_queries=data["chunk_kv_editor_num_queries"],
        memory_slots=data["num_history_frames"],
        rope_stride=data["video_rope_frame_stride"],
        lambda_action=data["loss"]["lambda_action_prior"],
    )

"""Every size of an AHA-WAM, the presets `full` and `small`, and plain-JSON forms.

Sources: facts/aha_wam.md section 1 for `full`, DESIGN section 5 for `small`.  Lengths are tokens, horizons and offsets
are control steps, images are pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class AhaWamConfig:
    """Sizes of the planner (video DiT), the executor (action DiT) and the router between them.

    `image_height` and `image_width` are those of the composed canvas; a latent pixel is 16 image pixels and a planner
    token is 2x2 latent pixels.  `rope_stride` is the number of control steps per temporal position of the planner.
    `shift` bends the noise grid of samplers, `train_shift` that of training.  `gate_init` is where the router's gates
    start in training, before the sigmoid.
    """

    num_layers: int = 30
    num_heads: int = 24
    head_dim: int = 128
    video_dim: int = 3072
    video_ffn_dim: int = 14336
    action_hidden_dim: int = 1024
    action_ffn_dim: int = 4096
    text_dim: int = 4096
    text_len: int = 128
    freq_dim: int = 256
    latent_dim: int = 48
    image_height: int = 384
    image_width: int = 320
    action_dim: int = 14
    proprio_dim: int = 14
    chunk_size: int = 16
    horizon: int = 64
    num_queries: int = 32
    memory_slots: int = 6
    rope_stride: int = 8
    rope_theta: float = 10000.0
    shift: float = 5.0
    train_shift: float = 5.0
    lambda_video: float = 1.0
    lambda_action: float = 1.0
    gate_init: float = -4.0

    def __post_init__(self) -> None:
        """Refuse sizes that no checkpoint of this family can have."""
        if self.horizon % self.chunk_size:
            raise ValueError(f"horizon {self.horizon} must be a multiple of chunk_size {self.chunk_size}.")
        if any(dim % 2 for dim in self.rope_dims) or self.freq_dim % 2:
            raise ValueError(f"Rotary axis widths {self.rope_dims} of head_dim {self.head_dim} and freq_dim must be even.")
        if self.image_height % 32 or self.image_width % 32:
            raise ValueError(f"Image {self.image_height}x{self.image_width} must be a multiple of 32 pixels on both sides.")

    @property
    def attention_dim(self) -> int:
        """Width of queries, keys and values: num_heads * head_dim."""
        return self.num_heads * self.head_dim

    @property
    def latent_height(self) -> int:
        """Rows of the image latent."""
        return self.image_height // 16

    @property
    def latent_width(self) -> int:
        """Columns of the image latent."""
        return self.image_width // 16

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of planner tokens in one latent frame."""
        return self.latent_height // 2, self.latent_width // 2

    @property
    def frame_tokens(self) -> int:
        """Planner tokens of one latent frame."""
        return self.grid[0] * self.grid[1]

    @property
    def num_chunks(self) -> int:
        """Action chunks in the horizon."""
        return self.horizon // self.chunk_size

    @property
    def rope_dims(self) -> tuple[int, int, int]:
        """Channels of a head that turn with (time, row, column)."""
        third = self.head_dim // 3
        return self.head_dim - 2 * third, third, third

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form; `from_json` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> AhaWamConfig:
        """Inverse of `to_json`.

        Raises:
            ValueError: fields this version does not know.
        """
        if unknown := set(data) - {f.name for f in fields(AhaWamConfig)}:
            raise ValueError(f"Unknown AhaWamConfig fields {sorted(unknown)}; the artifact was written by another version.")
        return AhaWamConfig(**data)


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
    sizes, video, action = data["golden_sizes"], data["video_dit_config"], data["action_dit_config"]
    height, width = sizes["image_hw"]
    return AhaWamConfig(
        num_layers=video["num_layers"],
        num_heads=video["num_heads"],
        head_dim=video["attn_head_dim"],
        video_dim=video["hidden_dim"],
        video_ffn_dim=video["ffn_dim"],
        action_hidden_dim=action["hidden_dim"],
        action_ffn_dim=action["ffn_dim"],
        text_dim=video["text_dim"],
        text_len=sizes["context_len"],
        freq_dim=video["freq_dim"],
        latent_dim=video["in_dim"],
        image_height=height,
        image_width=width,
        action_dim=action["action_dim"],
        proprio_dim=data["proprio_dim"],
        chunk_size=data["action_chunk_size"],
        horizon=data["action_horizon"],
        num_queries=data["chunk_kv_editor_num_queries"],
        memory_slots=data["num_history_frames"],
        rope_stride=data["video_rope_frame_stride"],
        shift=data["scheduler"]["infer_shift"],
        train_shift=data["scheduler"]["train_shift"],
        lambda_video=data["loss"]["lambda_video"],
        lambda_action=data["loss"]["lambda_action_prior"],
    )

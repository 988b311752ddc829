"""The sizes that every two-expert world-action model of the Wan family has: planner, executor, image, text, actions.

Families add their own in a subclass (`AhaWamConfig`, `FastWamConfig`).  Lengths are tokens, horizons are control steps,
images are pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class WamConfig:
    """Sizes of the planner (video DiT) and the executor (action DiT); defaults are the released ones.

    `image_height` and `image_width` are those of the composed canvas; a latent pixel is 16 image pixels and a planner
    token is 2x2 latent pixels.  `shift` bends the noise grid of samplers, `train_shift` that of training.
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
    horizon: int = 64
    rope_theta: float = 10000.0
    shift: float = 5.0
    train_shift: float = 5.0
    lambda_video: float = 1.0
    lambda_action: float = 1.0

    def __post_init__(self) -> None:
        """Refuse sizes that no checkpoint of these families can have."""
        if self.horizon % self.chunk_size:
            raise ValueError(f"horizon {self.horizon} must be a multiple of chunk_size {self.chunk_size}.")
        if any(dim % 2 for dim in self.rope_dims) or self.freq_dim % 2:
            raise ValueError(f"Rotary axis widths {self.rope_dims} of head_dim {self.head_dim} and freq_dim must be even.")
        if self.image_height % 32 or self.image_width % 32:
            raise ValueError(f"Image {self.image_height}x{self.image_width} must be a multiple of 32 pixels on both sides.")

    @property
    def chunk_size(self) -> int:
        """Actions that are denoised together; unless a family cuts its horizon, all of it."""
        return self.horizon

    @property
    def memory_slots(self) -> int:
        """Earlier frames that the planner remembers; none unless a family has a memory."""
        return 0

    @property
    def num_chunks(self) -> int:
        """Action chunks in the horizon."""
        return self.horizon // self.chunk_size

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
    def rope_dims(self) -> tuple[int, int, int]:
        """Channels of a head that turn with (time, row, column)."""
        third = self.head_dim // 3
        return self.head_dim - 2 * third, third, third

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`.

        Raises:
            ValueError: fields this version does not know.
        """
        if unknown := set(data) - {f.name for f in fields(cls)}:
            raise ValueError(f"Unknown {cls.__name__} fields {sorted(unknown)}; the artifact was written by another version.")
        return cls(**data)


def released_sizes(data: Mapping[str, Any]) -> dict[str, Any]:
    """The common sizes from a released-style configuration (`video_dit_config`, `action_dit_config`, `scheduler`, ...)."""
    video, action = data["video_dit_config"], data["action_dit_config"]
    return {
        "num_layers": video["num_layers"],
        "num_heads": video["num_heads"],
        "head_dim": video["attn_head_dim"],
        "video_dim": video["hidden_dim"],
        "video_ffn_dim": video["ffn_dim"],
        "action_hidden_dim": action["hidden_dim"],
        "action_ffn_dim": action["ffn_dim"],
        "text_dim": video["text_dim"],
        "freq_dim": video["freq_dim"],
        "latent_dim": video["in_dim"],
        "action_dim": action["action_dim"],
        "proprio_dim": data["proprio_dim"],
        "horizon": data["action_horizon"],
        "shift": data["scheduler"]["infer_shift"],
        "train_shift": data["scheduler"]["train_shift"],
        "lambda_video": data["loss"]["lambda_video"],
    }

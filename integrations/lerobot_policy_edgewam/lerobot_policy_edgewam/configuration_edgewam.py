"""Options of the LeRobot policy type `edgewam`: where the bundle is, and how LeRobot's names map to the bundle's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode


@PreTrainedConfig.register_subclass("edgewam")
@dataclass
class EdgewamConfig(PreTrainedConfig):
    """One of `bundle` (a directory) and `server` (host:port of `edgewam serve --door openpi`) says where the policy is.

    prompt: None takes the batch's `task`.  cameras: LeRobot camera name -> the bundle's, for those that differ.
    n_action_steps: rows of a chunk that `select_action` hands out.  fps: rows per second, the rate of the training data.
    """

    bundle: str = ""
    server: str = ""
    token_file: str = ""
    prompt: str | None = None
    cameras: dict[str, str] = field(default_factory=dict)
    n_action_steps: int = 8
    fps: float = 50.0
    threads: int = 2
    seed: int = 0
    # the bundle normalises by itself
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_action_steps < 1 or self.fps <= 0:
            raise ValueError(f"n_action_steps and fps must be positive, got {self.n_action_steps} and {self.fps}.")

    def validate_features(self) -> None:
        """A policy needs the joint state and a camera; which ones, the bundle says at its first look."""
        if self.robot_state_feature is None or not self.image_features:
            raise ValueError("An edgewam policy needs observation.state and at least one camera.")

    @property
    def observation_delta_indices(self) -> None:
        """Only the present: the bundle keeps its own memory."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """The rows that are handed out."""
        return list(range(self.n_action_steps))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return None

    def get_optimizer_preset(self) -> Any:
        """Bundles are not trained."""
        raise NotImplementedError("An edgewam bundle is not trained by LeRobot. Use edgewam train, distill and compile.")

    def get_scheduler_preset(self) -> None:
        """Bundles are not trained."""
        return None

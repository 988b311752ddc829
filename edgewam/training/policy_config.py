"""What to train a policy on and how.  The defaults of `PolicyTraining` are those of the policy `small`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.data.stats import Mode
from edgewam.data.windows import WindowLayout
from edgewam.models.family import trainable
from edgewam.models.text_sources import SMALL
from edgewam.training.loop import LoopConfig
from edgewam.training.policy_artifact import THREE_CAMERAS
from edgewam.training.weights import StoredDtype

SMALL_FAMILY = "aha_wam"  # of the policy that ships with edgewam


def small_training_model() -> Any:
    """`small` with the video loss at a tenth: its velocity error is about ten times the action's, and the action must lead."""
    return replace(trainable(SMALL_FAMILY).small(), lambda_video=0.1)


@dataclass(frozen=True, kw_only=True)
class PolicyTraining:
    """What to train on and how."""

    dataset: Path
    vae: Path  # VAE artifact
    latents: Path | None = None  # cache directory; default: in the run's working directory
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(minutes=42.0, warmup_steps=200))
    family: str = SMALL_FAMILY
    model: Any = field(default_factory=small_training_model)  # sizes: the family's `Config`
    layout: WindowLayout = field(default_factory=WindowLayout)
    text: str = SMALL  # source of the instructions' embeddings (`models.text_sources`)
    composition: str = THREE_CAMERAS  # of the cameras on the canvas (`core.observation`)
    normalisation: Mode = "z-score"  # of states and actions
    stats: Path | None = None  # a dataset_stats.json to normalise by; default: measured here, or those of init_from
    frames: bool = False  # decode and encode pictures while training, where latents of all would not fit on a disk
    num_workers: int = 2  # that decode ahead
    init_from: Path | None = None  # a policy artifact to start from
    warm_start: tuple[Path, ...] = ()  # files to fill planner and executor from (`models.warm_start`)
    new_stats: bool = False  # with init_from: normalise by this dataset's statistics instead of that policy's
    batch_size: int = 32  # contexts, of all ranks together
    action_draws: int = 1  # per context and chunk
    max_prefix: int = 0  # rows of a chunk that are given, 0..max_prefix drawn for each: for real-time chunking
    start_stride: int = 24  # control steps between window starts
    muon_lr: float | None = 0.02  # of matrices; None: AdamW for everything, as released
    adamw_lr: float = 1e-3
    weight_decay: float = 1e-2
    proprio_noise: float = 0.02  # standard deviation, normalised units
    weights_dtype: StoredDtype = "float32"

    def __post_init__(self) -> None:
        if not isinstance(self.model, trainable(self.family).Config):
            raise EdgewamError(
                f"A {type(self.model).__name__} holds no sizes of the family '{self.family}'. Give family and model together."
            )
        if self.warm_start and self.init_from:
            raise EdgewamError("A training starts from a policy (init_from) or from a video DiT (warm_start), not from both.")
        if not 0 <= self.max_prefix < self.model.chunk_size:
            raise EdgewamError(
                f"max_prefix must be from 0 to {self.model.chunk_size - 1}, a chunk with something left to learn; got "
                f"{self.max_prefix}."
            )

    @property
    def text_encoder(self) -> str:
        """What made its text rows, as a policy's facts name it."""
        return SMALL if self.text == SMALL else "umt5"

    def settings(self) -> dict[str, Any]:
        """What the result depends on, as plain JSON, without paths and the loop."""
        names = (
            "new_stats",
            "batch_size",
            "action_draws",
            "start_stride",
            "muon_lr",
            "adamw_lr",
            "weight_decay",
            "proprio_noise",
        )
        # only where they are not what all runs had before there was a choice, so that those go on
        usual = {
            "max_prefix": 0, "family": SMALL_FAMILY, "text_encoder": SMALL, "composition": THREE_CAMERAS,
            "normalisation": "z-score", "frames": False,
        }  # fmt: skip
        chosen = {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        parts = {"model": self.model.to_json(), "layout": asdict(self.layout)}
        return parts | {name: getattr(self, name) for name in names} | chosen

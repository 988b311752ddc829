"""What to distil and how: the settings of the distiller `ode`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.distill.trajectories import TrajectoryPlan
from edgewam.training.loop import LoopConfig
from edgewam.training.weights import StoredDtype


@dataclass(frozen=True, kw_only=True)
class OdeDistillation:
    """What to distil and how; the defaults are the released run's way (at lr 2e-5, with batches of 64 per card)."""

    teacher: Path  # policy artifact
    dataset: Path
    vae: Path | None = None  # where the teacher's VAE is, when not at its recorded place
    latents: Path | None = None  # latent cache of the teacher's training; default: in the run's working directory
    init_from: Path | None = None  # a student to start from; default: the teacher's weights
    trajectories: TrajectoryPlan = field(default_factory=TrajectoryPlan)
    # float32: the error to be learnt is as small as the rounding of bfloat16
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(minutes=8.0, warmup_steps=20, ema_decay=None, autocast=False))
    lr: float = 3e-4
    weight_decay: float = 1e-2
    anchor_draws: int = 2  # per context and chunk; they share one planner pass
    rollout: bool = False  # also run the student's own num_action_steps from the noise, and learn through all of them
    huber: float | None = None  # of a chunk, in standard deviations of the actions; None: squared distance, as released
    frames: bool = False  # decode and encode pictures again and again, where latents of all would not fit on a disk
    num_workers: int = 2  # that decode ahead
    start_stride: int | None = None  # control steps between window starts; None: as the teacher was trained
    text: str | None = None  # a source of embeddings for instructions that the teacher does not hold (`models.text_sources`)
    num_action_steps: int = 2  # what the student is meant to be sampled with
    shift: float | None = None  # of the student's sampler; None: that of what it starts from (the teacher's, as released)
    weights_dtype: StoredDtype = "float32"

    def __post_init__(self) -> None:
        if self.anchor_draws < 0 or not (self.anchor_draws or self.rollout):
            raise EdgewamError(f"A student needs something to learn from: anchor_draws is {self.anchor_draws}; or set rollout.")
        if self.huber is not None and self.huber <= 0:
            raise EdgewamError(f"huber is where the distance turns from square to linear; it must be positive, not {self.huber}.")
        if self.shift is not None and self.shift <= 0:
            raise EdgewamError(f"The shift of a sampler must be positive, not {self.shift}; 1 gives equal steps.")

    def settings(self) -> dict[str, Any]:
        """What, beside teacher, data, trajectories and loop, decides the student."""
        rollout_steps = self.num_action_steps if self.rollout else 0
        names = ("lr", "weight_decay", "anchor_draws", "huber", "shift")
        frames = {"frames": True} if self.frames else {}  # without them a run is what it was before there was a choice
        return {name: getattr(self, name) for name in names} | {"rollout_steps": rollout_steps} | frames

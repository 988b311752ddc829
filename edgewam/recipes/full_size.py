"""What a full-size recipe says, apart from the places of its data and the number of ranks: `robotwin` and `libero` fill it in.

A recipe counts in epochs and in windows per rank, as the released ones do; `training` and `distillation` turn it into the records
that the loop understands, for a dataset and a number of ranks.  A recipe of your own is a function that returns one of these:
`replace(robotwin_ahawam(), lr=1e-4)` in `my_module.py` is `--recipe my_module:function`.
"""

from __future__ import annotations

import importlib
import inspect
import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgewam.core.errors import EdgewamError

if TYPE_CHECKING:
    from edgewam.data.stats import Mode
    from edgewam.data.windows import WindowLayout
    from edgewam.distill.ode import OdeDistillation
    from edgewam.training.loop import LoopConfig
    from edgewam.training.policy_config import PolicyTraining

MODULES = ("edgewam.recipes.robotwin", "edgewam.recipes.libero")


@dataclass(frozen=True)
class Cluster:
    """What a recipe runs on: ranks, each with a device of its own, and windows in one epoch of the dataset."""

    ranks: int
    num_windows: int


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the parts of a training are.  text: source of embeddings; stats: a dataset_stats.json, None to measure them here."""

    dataset: Path
    vae: Path
    text: str
    stats: Path | None = None
    init_from: Path | None = None
    warm_start: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, with how many windows at once, and at which rates.  The defaults are those of the released runs.

    warmup: part of all steps in which the rate rises, from lr / warm-up steps on.  final_lr: part of the rate that is left at the
    end of the cosine.  batch_per_rank: windows of one pass; accumulate: passes per optimiser step.
    """

    batch_per_rank: int
    lr: float
    accumulate: int = 1
    epochs: int = 5  # facts/aha_wam.md 6 and 7.8
    weight_decay: float = 1e-2  # of everything, biases and norms too; AdamW with betas 0.9 and 0.95, no weight average
    warmup: float = 0.05
    final_lr: float = 0.01
    clip_norm: float = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        """Refuse what makes no training."""
        if min(self.batch_per_rank, self.accumulate, self.epochs) < 1 or not 0 <= self.warmup < 1 or self.lr <= 0:
            raise EdgewamError(
                f"A recipe needs at least one window, pass and epoch, a warm-up in [0, 1) and a positive rate; got {self}."
            )

    def windows_per_step(self, ranks: int) -> int:
        """Windows behind one optimiser step."""
        return self.batch_per_rank * ranks * self.accumulate

    def steps(self, cluster: Cluster) -> int:
        """Optimiser steps of all epochs.

        A batch holds one history length only, and the last one of a length is filled up: an epoch may be a few steps longer.
        """
        passes = math.ceil(cluster.num_windows / (self.batch_per_rank * cluster.ranks))
        return self.epochs * math.ceil(passes / self.accumulate)

    def loop(self, cluster: Cluster, steps: int | None = None, **further: Any) -> LoopConfig:
        """The loop of a number of ranks: steps instead of epochs, warm-up in steps, bfloat16 products, no weight average.

        A checkpoint holds weights and both moments in float32, 88 GB at 7.35 billion: twice an hour is often enough.
        """
        from edgewam.training.loop import LoopConfig

        steps = steps or self.steps(cluster)
        return LoopConfig(
            steps=steps, warmup_steps=int(self.warmup * steps), final_lr=self.final_lr, clip_norm=self.clip_norm,
            accumulate=self.accumulate, seed=self.seed, ema_decay=None, autocast=True, checkpoint_minutes=30.0, **further,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PolicyRecipe:
    """A policy from its warm start to the end of its training.

    model: sizes, of the family's `Config`.  composition: how the cameras share the canvas.  normalisation: which numbers of
    dataset_stats.json scale states and actions.  recompute: activations of a layer anew in the backward pass.  reshard: gather
    weights for the backward pass a second time.  frames: encode pictures while training; False: from cached latents.
    """

    family: str
    model: Any
    layout: WindowLayout
    schedule: Schedule
    composition: str = "three_cameras"
    normalisation: Mode = "z-score"
    start_stride: int = 1  # every frame starts a window, as released
    proprio_noise: float = 0.0
    recompute: bool = True
    reshard: bool = False
    frames: bool = True

    def training(
        self, places: Places, cluster: Cluster, device: str = "cpu", steps: int | None = None, num_workers: int = 0
    ) -> PolicyTraining:
        """What `training.policy` runs.

        Args:
            places: of dataset, VAE, text and statistics.
            cluster: ranks and windows of an epoch.
            device: of every rank.
            steps: optimiser steps instead of the recipe's epochs.
            num_workers: processes that read pictures ahead, for each rank.
        """
        from edgewam.training.policy_config import PolicyTraining

        schedule = self.schedule
        return PolicyTraining(
            dataset=places.dataset, vae=places.vae, text=places.text, stats=places.stats, init_from=places.init_from,
            warm_start=places.warm_start, family=self.family, model=self.model, layout=self.layout, composition=self.composition,
            normalisation=self.normalisation, frames=self.frames, num_workers=num_workers, start_stride=self.start_stride,
            loop=schedule.loop(cluster, steps, device=device, recompute=self.recompute, reshard=self.reshard),
            batch_size=schedule.batch_per_rank * cluster.ranks, muon_lr=None, adamw_lr=schedule.lr,
            weight_decay=schedule.weight_decay, proprio_noise=self.proprio_noise, weights_dtype="bfloat16",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StudentRecipe:
    """A student of few steps: facts/aha_wam.md 7.  `teacher` is the recipe of what it learns from: sizes and windows."""

    teacher: PolicyRecipe
    schedule: Schedule
    teacher_steps: int = 16
    captured: tuple[int, ...] = (0, 1, 2, 4, 8, 12, 16)  # six anchors and the result, each anchor as likely as the others
    anchor_draws: int = 1
    num_action_steps: int = 2
    huber: float | None = None  # plain squared distance
    shift: float | None = None  # the teacher's grid
    recompute: bool = True

    def distillation(
        self,
        teacher: Path,
        dataset: Path,
        cluster: Cluster,
        device: str = "cpu",
        steps: int | None = None,
        batches: int | None = None,
        text: str | None = None,
        vae: Path | None = None,
        init_from: Path | None = None,
        num_workers: int = 0,
    ) -> OdeDistillation:
        """What `distill.ode` runs.  The teacher's trajectories are made once, one for every window, and read in every epoch.

        Args:
            teacher: policy artifact.
            dataset: that gives the situations.
            cluster: ranks and windows of an epoch.
            device: of every rank.
            steps: optimiser steps instead of the recipe's epochs.
            batches: cached batches of trajectories instead of an epoch's.
            text: source of embeddings for instructions that the teacher does not hold.
            vae: the teacher's, where it is not at its recorded place.
            init_from: a student to start from; None: the teacher.
            num_workers: processes that read pictures ahead, for each rank.
        """
        from edgewam.distill.ode import OdeDistillation
        from edgewam.distill.trajectories import TrajectoryPlan

        schedule = self.schedule
        together = schedule.batch_per_rank * cluster.ranks
        plan = TrajectoryPlan(
            num_batches=batches or math.ceil(cluster.num_windows / together), batch_size=together, seed=schedule.seed,
            num_steps=self.teacher_steps, captured=self.captured,
        )  # fmt: skip
        return OdeDistillation(
            teacher=teacher, dataset=dataset, vae=vae, text=text, init_from=init_from, trajectories=plan,
            loop=schedule.loop(cluster, steps, device=device, recompute=self.recompute), lr=schedule.lr,
            frames=self.teacher.frames, num_workers=num_workers, start_stride=self.teacher.start_stride,
            weight_decay=schedule.weight_decay, anchor_draws=self.anchor_draws, huber=self.huber, shift=self.shift,
            num_action_steps=self.num_action_steps, weights_dtype="bfloat16",
        )  # fmt: skip


def recipe_names() -> list[str]:
    """Names of the recipes that come with edgewam."""
    return list(_shipped())


def find_recipe(name: str) -> PolicyRecipe | StudentRecipe:
    """The recipe of that name: one of `recipe_names`, or `module:function` of your own.

    Raises:
        EdgewamError: there is none, or the function returns something else.
    """
    if ":" in name:
        module_name, function = name.split(":", 1)
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise EdgewamError(
                f"Cannot import the module '{module_name}' of --recipe {name}: {error}. Python looks in the installed packages "
                "and in PYTHONPATH: start with PYTHONPATH=. edgewam ... where your file lies."
            ) from error
    else:
        if name not in (found := _shipped()):
            raise EdgewamError(f"Unknown recipe '{name}'. Available: small, {', '.join(found)}, or MODULE:FUNCTION of your own.")
        module, function = found[name], name
    made = getattr(module, function, None)
    if not inspect.isfunction(made):
        raise EdgewamError(f"There is no function '{function}' in '{module.__name__}'. --recipe takes MODULE:FUNCTION.")
    recipe = made()
    if not isinstance(recipe, PolicyRecipe | StudentRecipe):
        raise EdgewamError(
            f"'{name}' returns a {type(recipe).__name__}; a recipe is one of the two classes of edgewam.recipes.full_size."
        )
    return recipe


def _shipped() -> dict[str, ModuleType]:
    """Recipe -> its module: every function of `MODULES` that is not private."""
    modules = [importlib.import_module(path) for path in MODULES]
    return {
        name: module
        for module in modules
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }

"""Train a policy of any family: joint flow matching of future video and action chunks, with history and action offsets.

The released recipes (facts/aha_wam.md 6) with what a short training needs in addition: a frozen VAE whose latents are
cached, Muon for the family's matrices, a weight average, noise on the state, and several action draws per context.
`PolicyTraining`'s defaults are those of the policy `small`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgewam.core.artifacts import Manifest, file_digest, read_manifest
from edgewam.core.errors import EdgewamError
from edgewam.core.estimate import tree_bytes
from edgewam.data.dataset import Dataset, open_demonstrations
from edgewam.data.stats import DatasetStats, Mode, measure_stats, read_stats
from edgewam.data.windows import WindowLayout
from edgewam.flow.solver import euler_table
from edgewam.models import checkpoints
from edgewam.models.family import sizes, trainable
from edgewam.models.flow_loss import LossBatch
from edgewam.models.text_sources import SMALL, open_text
from edgewam.models.warm_start import warm_start
from edgewam.training.frames import held_out
from edgewam.training.loop import LoopConfig, Loss, Progress, train, whole_module
from edgewam.training.optimizers import ParameterGroup, split_muon
from edgewam.training.parallel import WHOLE, Share
from edgewam.training.policy_artifact import THREE_CAMERAS, LoadedPolicy, PolicyFacts, load_policy, write_policy
from edgewam.training.policy_source import MEASURED_TOGETHER, Source, open_sources
from edgewam.training.weights import StoredDtype, load_vae, rounded
from edgewam.training.windows import Choice

SMALL_FAMILY = "aha_wam"  # of the policy that ships with edgewam
MAX_PROMPTS = (
    64  # instructions that a policy takes with it, 1 MB each at full size; others are added to it by `edgewam prompt add`
)


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
    composition: str = THREE_CAMERAS  # how the cameras share the canvas (`core.observation.COMPOSITIONS`)
    frames: bool = False  # encode pictures when they are needed, as for data whose latents would fill a disk
    num_workers: int = 0  # processes that read pictures ahead
    stats: Path | None = None  # dataset_stats.json to normalise by; default: measured here, or those of init_from
    normalisation: Mode = "z-score"
    warm_start: tuple[Path, ...] = ()  # a video DiT and/or an ActionDiT file (`models.warm_start`)
    init_from: Path | None = None  # a policy artifact to start from
    new_stats: bool = False  # with init_from: normalise by this dataset's statistics instead of that policy's
    batch_size: int = 32  # contexts
    action_draws: int = 1  # per context and chunk
    max_prefix: int = 0  # rows of a chunk that are given, 0..max_prefix drawn for each: for real-time chunking
    start_stride: int = 24  # control steps between window starts
    muon_lr: float | None = 0.02  # None: AdamW for everything, as released
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
        if self.composition != THREE_CAMERAS and not self.frames:
            raise EdgewamError(f"Latents are cached of three cameras; the composition '{self.composition}' needs frames=True.")
        if not 0 <= self.max_prefix < self.model.chunk_size:
            raise EdgewamError(
                f"max_prefix must be from 0 to {self.model.chunk_size - 1}, a chunk with something left to learn; got "
                f"{self.max_prefix}."
            )

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
            "max_prefix": 0, "family": SMALL_FAMILY, "text": SMALL, "composition": THREE_CAMERAS, "frames": False,
            "normalisation": "z-score",
        }  # fmt: skip
        chosen = {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        parts = {"model": self.model.to_json(), "layout": asdict(self.layout)}
        return parts | {name: getattr(self, name) for name in names} | chosen


class PolicyTask:
    """The network and its joint loss."""

    def __init__(
        self, config: PolicyTraining, source: Source, digests: Mapping[str, str], module: nn.Module | None = None
    ) -> None:
        torch.manual_seed(config.loop.seed)
        self.config, self.source, self.family = config, source, trainable(config.family)
        self.module: nn.Module = self.family.build(config.model).to(config.loop.device) if module is None else module
        self.identity: Mapping[str, Any] = {"task": "policy", **digests, **config.settings()}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Muon for the family's matrices, such as those of transformer blocks; AdamW for everything else."""
        config, named = self.config, list(self.module.named_parameters())
        takes_muon = () if config.muon_lr is None else self.family.MATRICES
        matrices = [name for name, _ in named if any(part in name for part in takes_muon)]
        muon_lr = config.muon_lr or 0.0
        return split_muon(named, matrices, muon_lr=muon_lr, adamw_lr=config.adamw_lr, weight_decay=config.weight_decay)

    def batch(self, index: int, generator: np.random.Generator) -> Choice:
        """Windows of one history length."""
        return self.source.draw(self.config.batch_size, generator, index)

    def blocks(self) -> list[nn.Module]:
        """The family's layers."""
        return list(self.family.BLOCKS(self.module))

    def loss(self, batch: Choice, generator: torch.Generator, share: Share = WHOLE) -> Loss:
        """Weighted sum of both velocity errors; the state gets a little noise, as a real joint reading has."""
        config, size = self.config, len(batch)
        rows = share.rows(size)
        data = self.source.batch(batch.rows(rows.start, rows.stop))
        shaking = torch.randn((size, *data.proprio.shape[1:]), generator=generator)[rows]
        data = replace(data, proprio=data.proprio + config.proprio_noise * shaking)
        whole = data.widened(size)
        noise = self.family.draw_noise(whole, generator, config.action_draws, config.model.train_shift, config.max_prefix)
        device = config.loop.device
        losses = self.family.training_loss(self.module, data.to(device), noise.rows(rows).to(device))
        return Loss(losses.total, {"video": losses.video.detach(), "action": losses.action.detach()}, rows.stop - rows.start)

    def describe(self, batch: Choice) -> str:
        """Episodes, starts and offsets."""
        return self.source.describe(batch)


def train_policy(
    config: PolicyTraining,
    out: Path | str,
    progress: Callable[[Progress], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Cache latents, train, measure on held-out episodes and write the artifact `out` (kind "policy").

    The running state lives in `<out>.training` beside it; a run that was cut goes on from there.  With several ranks all call
    it with the same arguments, and rank 0 measures and writes.

    Args:
        config: what to train on and how.
        out: artifact directory.
        progress: called after every optimiser step.
        report: gets a line of text per encoded episode.

    Returns:
        What was measured on the held-out episodes, as in the manifest; nothing on other ranks than 0.

    Raises:
        EdgewamError: what dataset, VAE, cache or loop refuse.
    """
    out = Path(out)
    work = out.parent / f"{out.name}.training"
    dataset = open_demonstrations(config.dataset)
    vae, vae_manifest = load_vae(config.vae)
    start = starting_policy(config, vae_manifest) if config.init_from else None
    say = report or (lambda line: None)
    split = dataset.num_episodes - held_out(dataset.num_episodes)
    stats = starting_stats(config, dataset, split, start)
    text = open_text(config.text, config.model, config.loop.device)
    latents = config.latents or work / "latents"
    source, held = open_sources(config, dataset, vae, vae_manifest.digest, stats, text, split, latents, say)
    parents = {"dataset": dataset.digest, "vae": vae_manifest.digest} | ({"init_from": start.manifest.digest} if start else {})
    task = PolicyTask(config, source, parents | starting_digests(config))
    if config.warm_start:
        say(f"warm start: {warm_start(task.module, config.warm_start)}")
    if start:
        checkpoints.fit(task.module, start.model.state_dict(), f"'{config.init_from}'")
    result = train(task, config.loop, work, progress=progress)
    if not result.ranks.is_main:
        return {}
    model = whole_module(task.module, result, lambda: task.family.build(config.model))
    model.load_state_dict(rounded(result.weights, config.weights_dtype))
    how = {"device": config.loop.device, "autocast": config.loop.autocast} if config.frames else {}
    measured = measure_policy(config.family, model, held, config.loop.seed, **how)
    measured |= {"steps": result.step, "minutes": round(result.elapsed_s / 60, 2), "weights_dtype": config.weights_dtype}
    write_policy(
        out,
        "policy",
        config.family,
        model,
        stats,
        config.vae,
        PolicyFacts(
            config.layout,
            config.start_stride,
            config.loop.seed,
            tuple(dataset.tasks),
            max_prefix=config.max_prefix,
            text_encoder=SMALL if config.text == SMALL else "umt5",
            composition=config.composition,
        ),
        recipe={**task.identity, "loop": asdict(config.loop)},
        parents=parents,
        measured=measured,
        dtype=config.weights_dtype,
        log_from=work,
        prompts={} if config.text == SMALL else {task: text.encode(task) for task in dataset.tasks[:MAX_PROMPTS]},
    )
    return measured


def starting_stats(config: PolicyTraining, dataset: Dataset, split: int, start: LoadedPolicy | None) -> DatasetStats:
    """What states and actions are normalised by: of a given file, of the policy that is gone on from, or measured here.

    Raises:
        EdgewamError: they are of another robot, or the file cannot be read.
    """
    if config.stats is not None:
        stats = read_stats(config.stats, config.normalisation)
        stats.check(dataset, f"'{config.stats}'")
        return stats
    if start and not config.new_stats:
        return start.stats
    return measure_stats(dataset, range(split), mode=config.normalisation)


def starting_digests(config: PolicyTraining) -> dict[str, str]:
    """What else a restart must agree with; large files by their name and size."""
    found = {} if config.stats is None else {"stats": file_digest(config.stats)}
    files = [f"{path.name}, {tree_bytes(path)} bytes" for path in config.warm_start]
    return found | ({"warm_start": "; ".join(files)} if files else {})


def starting_policy(config: PolicyTraining, vae_manifest: Manifest) -> LoadedPolicy:
    """The policy to go on from; its VAE is the training's, or one that the training's was made to reproduce.

    Raises:
        EdgewamError: it is of another family, or latents of this VAE or rows of this text source mean nothing to it.
    """
    directory = config.init_from
    assert directory is not None
    known = read_manifest(directory).parents.get("vae")
    is_reproduced = vae_manifest.parents.get("reproduce") == known
    start = load_policy(directory) if is_reproduced else load_policy(directory, config.vae)
    if start.family != config.family:
        raise EdgewamError(f"'{directory}' is of the family '{start.family}', this training of '{config.family}'.")
    if (start.facts.text_encoder == SMALL) != (config.text == SMALL):
        raise EdgewamError(
            f"'{directory}' was trained with the text encoder '{start.facts.text_encoder}'; rows of '{config.text}' mean nothing "
            f"to it. Give {'no other' if start.facts.text_encoder == SMALL else 'its'} source of embeddings with --text."
        )
    return start


@torch.inference_mode()
def measure_policy(
    family: str,
    model: nn.Module,
    held: Source,
    seed: int,
    num_batches: int = 4,
    size: int = MEASURED_TOGETHER,
    device: str = "cpu",
    autocast: bool = False,
) -> dict[str, Any]:
    """Losses and sampling error on held-out windows with fixed noise; `autocast`: with bfloat16 products, as in training.

    `action_rms` is the distance of the first chunk of a 10-step sample to the demonstration in normalised units; it cannot
    reach zero where the demonstration itself is free (timing, execution noise), so closed loop is what judges a policy.
    """
    model.eval().to(device)
    module, config = trainable(family), sizes(model)
    values: dict[str, list[float]] = {"action_loss": [], "video_loss": [], "action_rms": []}
    for index in range(num_batches):
        generator = torch.Generator().manual_seed(seed * 1000 + index)
        batch = held.batch(held.draw(size, np.random.default_rng([seed, index, 5]))).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast):
            losses = module.training_loss(model, batch, module.draw_noise(batch, generator, 1, config.train_shift))
            error = _sampling_error(module, model, batch, generator)
        for name, value in (("action_loss", losses.action), ("video_loss", losses.video), ("action_rms", error)):
            values[name].append(float(value))
    model.cpu()
    return {name: float(np.mean(found)) for name, found in values.items()} | {"held_out_windows": num_batches * size}


def _sampling_error(module: ModuleType, model: nn.Module, batch: LossBatch, generator: torch.Generator) -> Tensor:
    """Root mean square of a 10-step sample's first chunk against the demonstration, normalised units."""
    noise, config = torch.randn(batch.actions.shape, generator=generator).to(batch.actions.device), sizes(model)
    found = module.sample_horizon(model, module.condition(model, batch), noise, euler_table(10, config.shift))[-1]
    first = slice(0, config.chunk_size)
    error = (found - batch.actions)[:, first].square().mean(-1)
    valid = ~batch.action_is_pad[:, first]
    root: Tensor = ((error * valid).sum() / valid.sum()).sqrt()
    return root

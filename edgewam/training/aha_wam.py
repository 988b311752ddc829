"""Train an AHA-WAM: joint flow matching of future video and action chunks, with history and action offsets.

The released recipe (facts/aha_wam.md 6) with what a short training needs in addition: a frozen VAE whose latents are
cached, Muon for the matrices of both transformers and of the router, a weight average, noise on the state, and several
action draws per context.  `PolicyTraining`'s defaults are those of the policy `small`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgewam.core.artifacts import Manifest, read_manifest
from edgewam.core.errors import EdgewamError
from edgewam.data.dataset import open_demonstrations
from edgewam.data.stats import measure_stats
from edgewam.data.windows import WindowLayout
from edgewam.flow.solver import euler_table
from edgewam.models import checkpoints
from edgewam.models.aha_wam_config import AhaWamConfig, small
from edgewam.models.aha_wam_loss import training_loss
from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.aha_wam_ode import condition, sample_horizon
from edgewam.models.flow_loss import LossBatch, draw_noise
from edgewam.models.text import SmallTextEncoder
from edgewam.training.frames import held_out
from edgewam.training.latents import build_cache
from edgewam.training.loop import LoopConfig, Progress, train
from edgewam.training.optimizers import ParameterGroup, split_muon
from edgewam.training.policy_artifact import LoadedPolicy, PolicyFacts, load_policy, write_policy
from edgewam.training.weights import StoredDtype, load_vae, rounded
from edgewam.training.windows import Choice, WindowSource, latent_plan


def small_training_model() -> AhaWamConfig:
    """`small` with the video loss at a tenth: its velocity error is about ten times the action's, and the action must lead."""
    return replace(small(), lambda_video=0.1)


@dataclass(frozen=True, kw_only=True)
class PolicyTraining:
    """What to train on and how."""

    dataset: Path
    vae: Path  # VAE artifact
    latents: Path | None = None  # cache directory; default: in the run's working directory
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(minutes=42.0, warmup_steps=200))
    model: AhaWamConfig = field(default_factory=small_training_model)
    layout: WindowLayout = field(default_factory=WindowLayout)
    init_from: Path | None = None  # a policy artifact to start from
    new_stats: bool = False  # with init_from: normalise by this dataset's statistics instead of that policy's
    batch_size: int = 32  # contexts
    action_draws: int = 1  # per context and chunk
    max_prefix: int = 0  # rows of a chunk that are given, 0..max_prefix drawn for each: for real-time chunking
    start_stride: int = 24  # control steps between window starts
    muon_lr: float = 0.02
    adamw_lr: float = 1e-3
    weight_decay: float = 1e-2
    proprio_noise: float = 0.02  # standard deviation, normalised units
    weights_dtype: StoredDtype = "float32"

    def __post_init__(self) -> None:
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
        prefix = {"max_prefix": self.max_prefix} if self.max_prefix else {}  # without one a run is what it was before
        parts = {"model": self.model.to_json(), "layout": asdict(self.layout)}
        return parts | {name: getattr(self, name) for name in names} | prefix


class PolicyTask:
    """The network and its joint loss."""

    def __init__(
        self, config: PolicyTraining, source: WindowSource, digests: Mapping[str, str], module: AhaWam | None = None
    ) -> None:
        torch.manual_seed(config.loop.seed)
        self.config, self.source = config, source
        self.module: nn.Module = AhaWam(config.model).to(config.loop.device) if module is None else module
        self.identity: Mapping[str, Any] = {"task": "policy", **digests, **config.settings()}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Muon for the matrices of the transformer blocks and of the router's layers, AdamW for everything else."""
        config, named = self.config, list(self.module.named_parameters())
        matrices = [
            name for name, _ in named if ".blocks." in name or ".layer_query_proj." in name or ".layer_delta_proj." in name
        ]
        return split_muon(named, matrices, muon_lr=config.muon_lr, adamw_lr=config.adamw_lr, weight_decay=config.weight_decay)

    def batch(self, index: int, generator: np.random.Generator) -> Choice:
        """Windows of one history length."""
        return self.source.draw(self.config.batch_size, generator)

    def loss(self, batch: Choice, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """Weighted sum of both velocity errors; the state gets a little noise, as a real joint reading has."""
        data = self.source.batch(batch)
        noisy = data.proprio + self.config.proprio_noise * torch.randn(data.proprio.shape, generator=generator)
        data = replace(data, proprio=noisy).to(self.config.loop.device)
        config = self.config
        noise = draw_noise(data, generator, config.action_draws, config.model.train_shift, config.max_prefix)
        losses = training_loss(self.module, data, noise)  # type: ignore[arg-type]
        return losses.total, {"video": losses.video.detach(), "action": losses.action.detach()}

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

    The running state lives in `<out>.training` beside it; a run that was cut goes on from there.

    Args:
        config: what to train on and how.
        out: artifact directory.
        progress: called after every optimiser step.
        report: gets a line of text per encoded episode.

    Returns:
        What was measured on the held-out episodes, as in the manifest.

    Raises:
        EdgewamError: what dataset, VAE, cache or loop refuse.
    """
    out = Path(out)
    work = out.parent / f"{out.name}.training"
    dataset = open_demonstrations(config.dataset)
    vae, vae_manifest = load_vae(config.vae)
    start = starting_policy(config.init_from, config.vae, vae_manifest) if config.init_from else None
    plan = latent_plan(config.layout, config.model, config.start_stride, config.loop.seed)
    say = report or (lambda line: None)
    cache = build_cache(
        config.latents or work / "latents", dataset, vae, vae_manifest.digest, plan, config.loop.device,
        lambda done, total, left: say(f"latents: episode {done}/{total}, {left:.0f} s left"),
    )  # fmt: skip
    split = dataset.num_episodes - held_out(dataset.num_episodes)
    stats = start.stats if start and not config.new_stats else measure_stats(dataset, range(split))
    text = SmallTextEncoder(config.model.text_dim, config.model.text_len)
    source = WindowSource(dataset, cache, stats, text, config.layout, range(split))
    parents = {"dataset": dataset.digest, "vae": vae_manifest.digest} | ({"init_from": start.manifest.digest} if start else {})
    task = PolicyTask(config, source, parents)
    if start:
        checkpoints.fit(task.module, start.model.state_dict(), f"'{config.init_from}'")
    result = train(task, config.loop, work, progress=progress)
    model: AhaWam = task.module.cpu()  # type: ignore[assignment]
    model.load_state_dict(rounded(result.average or model.state_dict(), config.weights_dtype))
    held = WindowSource(dataset, cache, stats, text, config.layout, range(split, dataset.num_episodes))
    measured = measure_policy(model, held, config.loop.seed)
    measured |= {"steps": result.step, "minutes": round(result.elapsed_s / 60, 2), "weights_dtype": config.weights_dtype}
    write_policy(
        out,
        "policy",
        model,
        stats,
        config.vae,
        PolicyFacts(config.layout, config.start_stride, config.loop.seed, tuple(dataset.tasks), max_prefix=config.max_prefix),
        recipe={**task.identity, "loop": asdict(config.loop)},
        parents=parents,
        measured=measured,
        dtype=config.weights_dtype,
        log_from=work,
    )
    return measured


def starting_policy(directory: Path, vae: Path, vae_manifest: Manifest) -> LoadedPolicy:
    """The policy to go on from; its VAE is `vae`, or one that `vae` was trained to reproduce.

    Raises:
        ArtifactError: latents of `vae` mean nothing to that policy.
    """
    known = read_manifest(directory).parents.get("vae")
    if vae_manifest.parents.get("reproduce") == known:
        return load_policy(directory)
    return load_policy(directory, vae)


@torch.inference_mode()
def measure_policy(model: AhaWam, held: WindowSource, seed: int, num_batches: int = 4, size: int = 16) -> dict[str, Any]:
    """Losses and sampling error on held-out windows with fixed noise.

    `action_rms` is the distance of the first chunk of a 10-step sample to the demonstration in normalised units; it cannot
    reach zero where the demonstration itself is free (timing, execution noise), so closed loop is what judges a policy.
    """
    model.eval()
    values: dict[str, list[float]] = {"action_loss": [], "video_loss": [], "action_rms": []}
    for index in range(num_batches):
        generator = torch.Generator().manual_seed(seed * 1000 + index)
        batch = held.batch(held.draw(size, np.random.default_rng([seed, index, 5])))
        losses = training_loss(model, batch, draw_noise(batch, generator, 1, model.config.train_shift))
        error = _sampling_error(model, batch, generator)
        for name, value in (("action_loss", losses.action), ("video_loss", losses.video), ("action_rms", error)):
            values[name].append(float(value))
    return {name: float(np.mean(found)) for name, found in values.items()} | {"held_out_windows": num_batches * size}


def _sampling_error(model: AhaWam, batch: LossBatch, generator: torch.Generator) -> Tensor:
    """Root mean square of a 10-step sample's first chunk against the demonstration, normalised units."""
    noise = torch.randn(batch.actions.shape, generator=generator)
    found = sample_horizon(model, condition(model, batch), noise, euler_table(10, model.config.shift))[-1]
    first = slice(0, model.config.chunk_size)
    error = (found - batch.actions)[:, first].square().mean(-1)
    valid = ~batch.action_is_pad[:, first]
    return ((error * valid).sum() / valid.sum()).sqrt()

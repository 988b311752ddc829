"""Train a policy of any family: joint flow matching of future video and action chunks, with history and action offsets.

The released recipes (facts/aha_wam.md 6) with what a short training needs in addition: a frozen VAE whose latents are
cached, Muon for the family's matrices, a weight average, noise on the state, and several action draws per context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgewam.core.artifacts import Manifest, file_digest, read_manifest, refuse_to_replace
from edgewam.core.errors import EdgewamError
from edgewam.data.dataset import Dataset, open_demonstrations
from edgewam.data.stats import DatasetStats, measure_stats, read_stats
from edgewam.flow.schedule import TableDtype
from edgewam.models import checkpoints
from edgewam.models.family import trainable
from edgewam.models.text_sources import SMALL, embedded_now, open_text
from edgewam.models.warm_start import sizes_digest, warm_start
from edgewam.training.loop import Loss, Progress, train, whole_module
from edgewam.training.optimizers import ParameterGroup, split_muon
from edgewam.training.policy_artifact import LoadedPolicy, PolicyFacts, load_policy, write_policy
from edgewam.training.policy_config import PolicyTraining
from edgewam.training.policy_measure import measure_policy
from edgewam.training.policy_source import held_batches, open_sources, training_episodes
from edgewam.training.ranks import WHOLE, Share, join_ranks, one_message
from edgewam.training.weights import load_vae, rounded
from edgewam.training.windows import Source, latent_plan

__all__ = ["PolicyTask", "PolicyTraining", "measure_policy", "starting_policy", "train_policy"]

# Instructions that a policy takes with it, 1 MB each at full size; others are added to it by `edgewam prompt add`.
MAX_PROMPTS = 64


class PolicyTask:
    """The network and its joint loss.  `tables`: how the sampler's tables are rounded where it acts, and timesteps here."""

    def __init__(
        self,
        config: PolicyTraining,
        source: Source,
        digests: Mapping[str, str],
        module: nn.Module | None = None,
        tables: TableDtype = "float32",
    ) -> None:
        torch.manual_seed(config.loop.seed)
        self.config, self.source, self.family, self.tables = config, source, trainable(config.family), tables
        self.module: nn.Module = self.family.build(config.model) if module is None else module
        if module is None and join_ranks(config.loop.device).world == 1:  # many ranks move it shard by shard
            self.module.to(config.loop.device)
        self.identity: Mapping[str, Any] = {"task": "policy", **digests, **config.settings()}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Muon for the family's matrices, such as those of transformer blocks; AdamW for everything else."""
        config, named = self.config, list(self.module.named_parameters())
        matrices = [name for name, _ in named if config.muon_lr and any(part in name for part in self.family.MATRICES)]
        rates = {"muon_lr": config.muon_lr or 0.0, "adamw_lr": config.adamw_lr}
        return split_muon(named, matrices, **rates, weight_decay=config.weight_decay)

    def batch(self, index: int, generator: np.random.Generator) -> Any:
        """Windows of one history length."""
        return self.source.draw(self.config.batch_size, generator, index)

    def blocks(self) -> list[nn.Module]:
        """The family's layers."""
        return list(self.family.BLOCKS(self.module))

    def loss(self, batch: Any, generator: torch.Generator, share: Share = WHOLE) -> Loss:
        """Weighted sum of both velocity errors; the state gets a little noise, as a real joint reading has."""
        config, size = self.config, len(batch)
        rows = share.rows(size)
        data = self.source.batch(batch.rows(rows.start, rows.stop))
        shaking = torch.randn((size, *data.proprio.shape[1:]), generator=generator)[rows]
        data = replace(data, proprio=data.proprio + config.proprio_noise * shaking)
        whole = data.widened(size)
        noise = self.family.draw_noise(whole, generator, config.action_draws, config.model.train_shift, config.max_prefix)
        noise = noise.rounded(self.tables)
        device = config.loop.device
        losses = self.family.training_loss(self.module, data.to(device), noise.rows(rows).to(device))
        return Loss(losses.total, {"video": losses.video.detach(), "action": losses.action.detach()}, rows.stop - rows.start)

    def describe(self, batch: Any) -> str:
        """Episodes, starts and offsets."""
        return self.source.describe(batch)


@one_message
def train_policy(
    config: PolicyTraining,
    out: Path | str,
    progress: Callable[[Progress], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train, measure on held-out episodes and write the artifact `out` (kind "policy").

    The running state lives in `<out>.training` beside it; a run that was cut goes on from there.  With several ranks all call
    it with the same arguments, and rank 0 measures and writes.

    Args:
        config: what to train on and how.
        out: artifact directory.
        progress: called after every optimiser step.
        report: gets a line of text per encoded episode.

    Returns:
        What was measured on the held-out episodes, as in the manifest; with several ranks only on rank 0, which alone writes.

    Raises:
        EdgewamError: what dataset, VAE, cache or loop refuse.
    """
    out = Path(out)
    refuse_to_replace(out, "policy")
    work = out.parent / f"{out.name}.training"
    dataset = open_demonstrations(config.dataset)
    vae, vae_manifest = load_vae(config.vae)
    start = starting_policy(config, vae_manifest) if config.init_from else None
    whose = f"'{config.init_from}'" if start else "the model"
    dataset.check_fits(whose, config.model.proprio_dim, config.model.action_dim, start.facts.fps if start else None)
    train_on = training_episodes(dataset)
    stats = _stats(config, dataset, train_on, start)
    text = embedded_now(open_text(config.text, config.model, config.loop.device), dataset.tasks)
    say = report or (lambda line: None)
    sources = open_sources(
        dataset, vae, vae_manifest.digest,
        latent_plan(config.layout, config.model, config.start_stride, config.loop.seed, config.composition),
        config.loop, stats, text, config.layout, say,
        cache=None if config.frames else config.latents or work / "latents", batch_size=config.batch_size,
        num_workers=config.num_workers, chunk_images=trainable(config.family).CHUNK_IMAGES,
    )  # fmt: skip
    parents = {"dataset": dataset.digest, "vae": vae_manifest.digest} | ({"init_from": start.manifest.digest} if start else {})
    parents |= {f"warm_start_{number}": sizes_digest(path) for number, path in enumerate(config.warm_start)}
    parents |= {} if config.stats is None else {"stats": file_digest(config.stats)}
    tables = start.facts.sampler_tables if start else "float32"  # what a policy has learnt with, it goes on with
    task = PolicyTask(config, sources.train, parents, tables=tables)
    if config.warm_start:
        say(f"warm start: {warm_start(task.module, config.warm_start)}")
    if start:
        checkpoints.fit(task.module, start.model.state_dict(), f"'{config.init_from}'")
        start = replace(start, model=nn.Identity())  # its weights are in the task now
    result = train(task, config.loop, work, progress=progress)
    if not result.ranks.is_main:
        return {}
    task.module = whole_module(task.module, result, lambda: task.family.build(config.model))
    task.module.load_state_dict(rounded(result.weights, config.weights_dtype))
    measured = measure_policy(
        config.family, task.module.to(config.loop.device), sources.held, config.loop.seed,
        tables=tables, **held_batches(config.frames),
    )  # fmt: skip
    measured |= {"steps": result.step, "minutes": round(result.elapsed_s / 60, 2), "weights_dtype": config.weights_dtype}
    write_policy(
        out,
        "policy",
        config.family,
        task.module.cpu(),
        stats,
        config.vae,
        PolicyFacts(
            config.layout, config.start_stride, config.loop.seed, tuple(dataset.tasks), max_prefix=config.max_prefix,
            text_encoder=config.text_encoder, composition=config.composition, fps=dataset.fps, sampler_tables=tables,
        ),
        recipe={**task.identity, "loop": asdict(config.loop)},
        parents=parents,
        measured=measured,
        dtype=config.weights_dtype,
        log_from=work,
        prompts={} if config.text == SMALL else {words: text.encode(words) for words in dataset.tasks[:MAX_PROMPTS]},
    )  # fmt: skip
    return measured


def _stats(config: PolicyTraining, dataset: Dataset, episodes: range, start: LoadedPolicy | None) -> DatasetStats:
    if config.stats is not None:
        stats = read_stats(config.stats, config.normalisation)
        stats.check(dataset, f"'{config.stats}'")
        return stats
    return start.stats if start and not config.new_stats else measure_stats(dataset, episodes, mode=config.normalisation)


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
    if (heads := start.sizes.head_dim) != config.model.head_dim:  # no shape tells
        raise EdgewamError(f"'{directory}' has attention heads {heads} wide, this training's model {config.model.head_dim}.")
    if start.facts.composition != config.composition:
        raise EdgewamError(
            f"'{directory}' looks at '{start.facts.composition}' images, this training at '{config.composition}'. Give its own."
        )
    if (start.facts.text_encoder == SMALL) != (config.text == SMALL):
        raise EdgewamError(
            f"'{directory}' was trained with the text encoder '{start.facts.text_encoder}'; rows of '{config.text}' mean nothing "
            f"to it. Give {'no other' if start.facts.text_encoder == SMALL else 'its'} source of embeddings with --text."
        )
    return start

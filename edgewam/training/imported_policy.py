"""Write a policy artifact from tensors of a released file without loading the network: `edgewam convert` with VAE and stats.

The artifact is what `policy_artifact.write_policy` writes, with weights in shards and upstream's leftovers in `model.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewam.core.artifacts import read_manifest, write_artifact
from edgewam.core.errors import ArtifactError
from edgewam.data.stats import DatasetStats, write_stats
from edgewam.data.windows import WindowLayout
from edgewam.flow.schedule import TableDtype
from edgewam.models import checkpoints
from edgewam.models.checkpoints.shards import SHARD_BYTES, Source
from edgewam.models.text import Array
from edgewam.models.text_sources import SMALL
from edgewam.models.text_store import PROMPTS, write_prompts
from edgewam.training.policy_artifact import STATS, PolicyFacts, facts_json
from edgewam.training.weights import VAE_FAMILY

TEACHER_STEPS, STUDENT_STEPS = 10, 2  # sampler steps of the released evaluation, and of the paper's student
LATENT_STRIDE = 24  # control steps between windows whose latents are cached when it is distilled, as `train` caches them


@dataclass(frozen=True)
class Import:
    """A policy that is ready to be written.

    config: its family's configuration.  sampler_tables: "bf16" for weights that were trained with timesteps of that type.
    num_action_steps: what it is sampled with where it says so itself.
    """

    family: str
    config: Any
    tensors: Mapping[str, Source]
    upstream: Mapping[str, Any]
    ode_metadata: Mapping[str, Any] | None = None
    sampler_tables: TableDtype = "bf16"
    num_action_steps: int | None = None

    @property
    def kind(self) -> str:
        """A file with ODE metadata is a student."""
        return "policy" if self.ode_metadata is None else "student"


def write_imported(
    out: Path,
    made: Import,
    *,
    vae: Path,
    stats: DatasetStats,
    stats_name: str,
    layout: WindowLayout,
    text_encoder: str,
    composition: str,
    prompts: Mapping[str, Array],
    recipe: Mapping[str, Any],
    limit: int = SHARD_BYTES,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Write the artifact whole or not at all.

    Args:
        stats_name: where the statistics are from, for errors.
        prompts: instruction -> text rows; those of the small encoder are not stored, only their names.

    Raises:
        ArtifactError: the VAE or the statistics do not belong to this policy.
    """
    for name, normalizer, size in (
        ("state", stats.state, made.config.proprio_dim), ("action", stats.action, made.config.action_dim),
    ):  # fmt: skip
        if len(normalizer.mean) != size:
            raise ArtifactError(
                f"'{stats_name}' has '{name}' of {len(normalizer.mean)} values, but the checkpoint takes {size}. Give the "
                "dataset_stats.json of these weights."
            )
    manifest = read_manifest(vae, kind="vae")
    z_dim = checkpoints.read(vae, VAE_FAMILY).config["z_dim"]
    if z_dim != made.config.latent_dim:
        raise ArtifactError(f"The latents of '{vae}' have {z_dim} channels, but the checkpoint takes {made.config.latent_dim}.")
    facts = PolicyFacts(
        layout, LATENT_STRIDE, 0, tuple(prompts), made.ode_metadata,
        num_action_steps=made.num_action_steps or (TEACHER_STEPS if made.ode_metadata is None else STUDENT_STEPS),
        sampler_tables=made.sampler_tables, text_encoder=text_encoder, composition=composition,
    )  # fmt: skip
    with write_artifact(out, made.kind, config=recipe, parents={"vae": manifest.digest}) as directory:
        checkpoints.write_model(
            directory, made.tensors, family=made.family, config=made.config.to_json(), metadata=facts_json(facts, vae, out),
            upstream=made.upstream, limit=limit, report=report,
        )  # fmt: skip
        write_stats(directory / STATS, stats)
        if prompts and text_encoder != SMALL:
            write_prompts(directory / PROMPTS, prompts)

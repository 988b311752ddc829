"""A trained policy on disk: weights, sizes, statistics, and the VAE it belongs to, by digest.

`model.safetensors` and `model.json` are those of `models.aha_wam.save`; the metadata in the latter hold the relative path
of the VAE artifact (which must have the recorded digest) and the window layout.  `stats.json` has the released form.
Teachers are of kind "policy", distilled ones of kind "student".
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgewam.core.artifacts import MANIFEST, Manifest, read_manifest, write_artifact
from edgewam.core.errors import ArtifactError
from edgewam.data.stats import DatasetStats, read_stats, write_stats
from edgewam.data.windows import WindowLayout
from edgewam.flow.schedule import TableDtype
from edgewam.models import aha_wam, checkpoints
from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.wan_vae import WanVae
from edgewam.training.log import LOG
from edgewam.training.weights import StoredDtype, load_vae

STATS = "stats.json"
KINDS = ("policy", "student")


@dataclass(frozen=True)
class PolicyFacts:
    """What must be known of a policy beside its weights: its windows (to train on or to distil) and its instructions."""

    layout: WindowLayout
    start_stride: int
    latent_seed: int
    tasks: tuple[str, ...]
    ode_metadata: Mapping[str, Any] | None = None  # of a student: teacher, its grid, its captured steps
    num_action_steps: int = 10  # sampler steps that it is meant for
    steps_are_fixed: bool = False  # of a student that was taught these steps only: with another number its actions are wrong
    # how timesteps and deltas are rounded: released weights were trained with "bf16" ones, what edgewam trains with "float32"
    sampler_tables: TableDtype = "float32"
    max_prefix: int = 0  # leading rows of a chunk that may be given, as real-time chunking does; 0: it was not trained for that


@dataclass(frozen=True)
class LoadedPolicy:
    """What a policy artifact holds; both networks are float32, frozen and in evaluation mode."""

    model: AhaWam
    vae: WanVae
    stats: DatasetStats
    facts: PolicyFacts
    manifest: Manifest
    vae_path: Path


def write_policy(
    out: Path,
    kind: str,
    model: AhaWam,
    stats: DatasetStats,
    vae: Path,
    facts: PolicyFacts,
    *,
    recipe: Mapping[str, Any],
    parents: Mapping[str, str],
    measured: dict[str, Any],
    dtype: StoredDtype,
    log_from: Path,
    base: Path | None = None,
) -> None:
    """Write a policy artifact.  `recipe` (how it was made) goes into the manifest, the log of `log_from` beside it.

    base: a policy artifact of which most weights are kept, such as a student's teacher; only what differs is stored.
    """
    assert kind in KINDS, kind
    metadata = {"vae": os.path.relpath(vae.resolve(), out.resolve()), **asdict(facts)}
    recipe = json.loads(json.dumps(dict(recipe), default=str))
    with write_artifact(out, kind, config=recipe, parents=parents, measured=measured) as directory:
        aha_wam.save(model, directory, dtype, metadata, base)
        write_stats(directory / STATS, stats)
        shutil.copyfile(log_from / LOG, directory / LOG)


def load_policy(directory: Path | str, vae: Path | str | None = None) -> LoadedPolicy:
    """Load a policy or student artifact with its VAE.

    Args:
        directory: the artifact.
        vae: the VAE artifact, where it is not at the recorded place.

    Raises:
        ArtifactError: not a policy, damaged, or its VAE is missing or another one.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if manifest.kind not in KINDS:
        raise ArtifactError(f"'{directory}' is a {manifest.kind}, but a policy is needed here. Make one with: edgewam train")
    model = aha_wam.load(directory)
    metadata = dict(checkpoints.read(directory, aha_wam.FAMILY).metadata)
    try:
        recorded = directory / metadata.pop("vae")
        layout = {name: tuple(value) if isinstance(value, list) else value for name, value in metadata.pop("layout").items()}
        facts = PolicyFacts(WindowLayout(**layout), tasks=tuple(metadata.pop("tasks")), **metadata)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"'{directory}/model.json' does not describe a policy of this version: {error!r}.") from error
    vae_path = recorded if vae is None else Path(vae)
    if not (vae_path / MANIFEST).exists():
        raise ArtifactError(f"The VAE of '{directory}' is not at '{vae_path}'. Copy it there or give its path.")
    network, vae_manifest = load_vae(vae_path)
    if vae_manifest.digest != manifest.parents.get("vae"):
        raise ArtifactError(f"'{vae_path}' is not the VAE that '{directory}' was trained with (its digest differs).")
    stats = read_stats(directory / STATS)
    return LoadedPolicy(model.eval().requires_grad_(False), network, stats, facts, manifest, vae_path)

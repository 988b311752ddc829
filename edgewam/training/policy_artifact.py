"""A trained policy on disk: weights, sizes, statistics, and the VAE it belongs to, by digest.

`model.safetensors` and `model.json` are those of its family's `save`; the metadata in the latter hold the relative path of the
VAE artifact (which must have the recorded digest) and the window layout.  `stats.json` has the released form, and
`prompts.safetensors` (optional) instructions as text rows.  Teachers are of kind "policy", distilled ones of kind "student".
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgewam.core import plugins
from edgewam.core.artifacts import MANIFEST, Manifest, read_manifest, write_artifact
from edgewam.core.errors import ArtifactError
from edgewam.data.stats import DatasetStats, read_stats, write_stats
from edgewam.data.windows import WindowLayout
from edgewam.flow.schedule import TableDtype
from edgewam.models import checkpoints
from edgewam.models.family import Sizes, sizes
from edgewam.models.text import Array, TextEncoder
from edgewam.models.text_sources import SMALL, policy_text
from edgewam.models.text_store import PROMPTS, read_prompts, write_prompts
from edgewam.models.wan_vae import WanVae
from edgewam.training.log import LOG
from edgewam.training.weights import StoredDtype, load_vae

STATS = "stats.json"
KINDS = ("policy", "student")
WEIGHTS_ONLY = "weights"  # what `edgewam convert` writes of a released file without its VAE and statistics
THREE_CAMERAS = "three_cameras"  # the head camera above both wrists


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
    # what made its text rows: "small", "umt5" (released policies), or "stored": something else, only its results are known
    text_encoder: str = SMALL
    composition: str = THREE_CAMERAS  # of the image, by name
    fps: int | None = None  # control steps a second of its data, where that is known


@dataclass(frozen=True)
class LoadedPolicy:
    """What a policy artifact holds; both networks are float32, frozen and in evaluation mode.

    family: name of its plugin.  storage: dtype of its weights on disk.  prompts: instruction -> text rows [text_len, text_dim]
    that are stored with it.
    """

    model: nn.Module
    vae: WanVae
    stats: DatasetStats
    facts: PolicyFacts
    manifest: Manifest
    vae_path: Path
    family: str
    path: Path
    storage: StoredDtype
    prompts: Mapping[str, Array] = field(default_factory=dict)

    @property
    def sizes(self) -> Sizes:
        """The network's configuration."""
        return sizes(self.model)

    def text(self, given: str | Path | None = None) -> TextEncoder:
        """What embeds instructions for this policy: the small encoder, or its stored prompts and then the source `given`.

        Raises:
            EdgewamError: a source that does not belong to this policy.
        """
        return policy_text(self.path, self.facts.text_encoder, self.sizes, given)


def write_policy(
    out: Path,
    kind: str,
    family: str,
    model: nn.Module,
    stats: DatasetStats,
    vae: Path,
    facts: PolicyFacts,
    *,
    recipe: Mapping[str, Any],
    parents: Mapping[str, str],
    measured: dict[str, Any],
    dtype: StoredDtype,
    log_from: Path | None = None,
    base: Path | None = None,
    prompts: Mapping[str, Array] | None = None,
) -> None:
    """Write a policy artifact.  `recipe` (how it was made) goes into the manifest, the log of `log_from` beside it.

    base: a policy artifact of which most weights are kept, such as a student's teacher; only what differs is stored.
    prompts: instruction -> text rows [text_len, text_dim].
    """
    assert kind in KINDS, kind
    recipe = json.loads(json.dumps(dict(recipe), default=str))
    with write_artifact(out, kind, config=recipe, parents=parents, measured=measured) as directory:
        plugins.load("family", family).save(model, directory, dtype, facts_json(facts, vae, out), base)
        write_stats(directory / STATS, stats)
        if prompts:
            write_prompts(directory / PROMPTS, prompts)
        if log_from is not None:
            shutil.copyfile(log_from / LOG, directory / LOG)


def facts_json(facts: PolicyFacts, vae: Path, out: Path) -> dict[str, Any]:
    """The metadata of a policy at `out`: its facts, and where its VAE is from there."""
    return {"vae": os.path.relpath(vae.resolve(), out.resolve()), **asdict(facts)}


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
    _require_policy(directory, manifest)
    stored = checkpoints.read(directory)
    metadata = dict(stored.metadata)
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
    model = plugins.load("family", stored.family).load(directory).eval().requires_grad_(False)
    return LoadedPolicy(
        model, network, read_stats(directory / STATS), facts, manifest, vae_path, stored.family, directory,
        stored_dtype(stored.tensors),
        read_prompts(directory / PROMPTS),
    )  # fmt: skip


def stored_dtype(tensors: Mapping[str, Tensor]) -> StoredDtype:
    """The dtype of most of a checkpoint: that of its largest tensor."""
    largest = max(tensors.values(), key=lambda tensor: tensor.numel())
    names: dict[torch.dtype, StoredDtype] = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
    return names.get(largest.dtype, "float32")


def _require_policy(directory: Path, manifest: Manifest) -> None:
    if manifest.kind == WEIGHTS_ONLY:
        raise ArtifactError(
            f"'{directory}' holds weights alone; this needs their VAE and statistics too. Convert the released file again with: "
            f"edgewam convert FILE {directory} --vae VAE --stats dataset_stats.json"
        )
    if manifest.kind not in KINDS:
        raise ArtifactError(f"'{directory}' is a {manifest.kind}, but a policy is needed here. Make one with: edgewam train")

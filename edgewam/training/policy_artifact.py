"""A trained policy on disk: weights, sizes, statistics, and the VAE it belongs to, by digest.

`model.safetensors` has the state-dict keys of `AhaWam`; `config.json` its sizes and the relative path of the VAE artifact
(which must have the recorded digest); `stats.json` the statistics in the released form.  Teachers are of kind "policy",
distilled ones of kind "student".
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from edgewam.core.artifacts import MANIFEST, Manifest, read_manifest, write_artifact
from edgewam.core.errors import ArtifactError
from edgewam.data.stats import DatasetStats, read_stats, write_stats
from edgewam.models.aha_wam_config import AhaWamConfig
from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.wan_vae import WanVae
from edgewam.training.log import LOG
from edgewam.training.weights import StoredDtype, load_state, load_vae, read_config, read_weights, write_weights

STATS = "stats.json"
KINDS = ("policy", "student")


@dataclass(frozen=True)
class LoadedPolicy:
    """What a policy artifact holds; both networks are float32, frozen and in evaluation mode."""

    model: AhaWam
    vae: WanVae
    stats: DatasetStats
    config: Mapping[str, Any]
    manifest: Manifest
    vae_path: Path


def write_policy(
    out: Path,
    kind: str,
    state: Mapping[str, Tensor],
    model: AhaWamConfig,
    stats: DatasetStats,
    vae: Path,
    *,
    recipe: Mapping[str, Any],
    details: Mapping[str, Any],
    parents: Mapping[str, str],
    measured: dict[str, Any],
    dtype: StoredDtype,
    log_from: Path,
) -> None:
    """Write a policy artifact.  `recipe` goes to the manifest, `details` beside the sizes into `config.json`."""
    assert kind in KINDS, kind
    config = {"family": "aha_wam", "model": model.to_json(), "vae": os.path.relpath(vae.resolve(), out.resolve()), **details}
    recipe = json.loads(json.dumps(dict(recipe), default=str))
    with write_artifact(out, kind, config=recipe, parents=parents, measured=measured) as directory:
        write_weights(directory, state, config, dtype)
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
    config = read_config(directory)
    try:
        sizes, vae_path = AhaWamConfig.from_json(config["model"]), Path(vae) if vae else directory / config["vae"]
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"'{directory}/config.json' does not describe a policy of this version: {error}.") from error
    if not (vae_path / MANIFEST).exists():
        raise ArtifactError(f"The VAE of '{directory}' is not at '{vae_path}'. Copy it there or give its path.")
    network, vae_manifest = load_vae(vae_path)
    if vae_manifest.digest != manifest.parents.get("vae"):
        raise ArtifactError(f"'{vae_path}' is not the VAE that '{directory}' was trained with (its digest differs).")
    model = AhaWam(sizes)
    load_state(model, read_weights(directory), directory)
    stats = read_stats(directory / STATS)
    return LoadedPolicy(model.eval().requires_grad_(False), network, stats, config, manifest, vae_path)

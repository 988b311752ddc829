"""Weights and their description inside an artifact: `model.safetensors` + `config.json`, and a VAE read back from them.

Weights may be stored in half precision; they are rounded before anything is measured with them and always loaded as
float32, so that what was measured is what is shipped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from edgewam.core.artifacts import Manifest, read_manifest, write_json
from edgewam.core.errors import ArtifactError
from edgewam.models.wan_vae import WanVae, WanVaeConfig

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
StoredDtype = Literal["float32", "float16"]


def rounded(state: Mapping[str, Tensor], dtype: StoredDtype) -> dict[str, Tensor]:
    """The weights as they will be after storing them in `dtype`: float32 values, rounded."""
    stored = getattr(torch, dtype)
    return {name: t.detach().cpu().to(stored).float() if t.is_floating_point() else t.detach().cpu() for name, t in state.items()}


def write_weights(directory: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], dtype: StoredDtype) -> None:
    """Write `model.safetensors` (floats in `dtype`) and `config.json` into an artifact that is being made."""
    stored = getattr(torch, dtype)
    tensors = {n: (t.to(stored) if t.is_floating_point() else t).detach().cpu().contiguous() for n, t in state.items()}
    (directory / WEIGHTS).write_bytes(save(tensors))
    write_json(directory / CONFIG, dict(config))


def read_weights(directory: Path) -> dict[str, Tensor]:
    """The tensors of `model.safetensors`, floats as float32.  ArtifactError when the file is missing or damaged."""
    path = directory / WEIGHTS
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"Cannot read the weights '{path}': {error}. Copy the artifact again or make it again.") from error
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json` of an artifact; ArtifactError when it is missing or no JSON object."""
    path = directory / CONFIG
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"Cannot read '{path}': {error}. Copy the artifact again or make it again.") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"'{path}' holds no JSON object. Copy the artifact again or make it again.")
    return data


def load_state(module: torch.nn.Module, state: Mapping[str, Tensor], where: Path | str) -> None:
    """Load every weight of `module`; ArtifactError names the first keys or shapes that do not fit."""
    own = module.state_dict()
    differ = sorted(own.keys() ^ state.keys()) or sorted(n for n in own if own[n].shape != state[n].shape)
    if differ:
        raise ArtifactError(f"The weights in '{where}' do not fit this model: {', '.join(differ[:4])} (of {len(differ)}) differ.")
    module.load_state_dict(dict(state))


def vae_config_json(config: WanVaeConfig) -> dict[str, Any]:
    """Plain-JSON form of a VAE configuration, latent constants included."""
    return asdict(config)


def load_vae(directory: Path | str) -> tuple[WanVae, Manifest]:
    """A VAE artifact's network, float32, in evaluation mode, and its manifest.

    Raises:
        ArtifactError: it is no VAE artifact, is damaged, or does not fit this version.
    """
    directory = Path(directory)
    manifest = read_manifest(directory, kind="vae")
    return read_vae(directory), manifest


def read_vae(directory: Path) -> WanVae:
    """The VAE of a directory with `model.safetensors` and `config.json` (an artifact, or the copy inside a policy)."""
    data = {name: tuple(value) if isinstance(value, list) else value for name, value in read_config(directory).items()}
    try:
        config = WanVaeConfig(**data)
    except TypeError as error:
        raise ArtifactError(f"'{directory / CONFIG}' is no VAE configuration: {error}. Train the VAE again.") from error
    vae = WanVae(config)
    load_state(vae, read_weights(directory), directory)
    return vae.eval().requires_grad_(False)


def with_latent_constants(config: WanVaeConfig, mean: Tensor, std: Tensor) -> WanVaeConfig:
    """The same VAE with other constants [z_dim] to normalise its latents by."""
    return replace(config, latent_mean=tuple(mean.tolist()), latent_std=tuple(std.tolist()))

"""Weights of artifacts: rounding to what will be stored, and VAE artifacts read back.

Weights may be stored in half precision; they are rounded before anything is measured with them and always loaded as
float32, so that what was measured is what is shipped.  The files themselves are those of `models.checkpoints`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from edgewam.core.artifacts import Manifest, read_manifest
from edgewam.core.errors import ArtifactError
from edgewam.models import checkpoints
from edgewam.models.wan_vae import WanVae, WanVaeConfig

VAE_FAMILY = "wan_vae"
StoredDtype = Literal["float32", "float16", "bfloat16"]


def rounded(state: Mapping[str, Tensor], dtype: StoredDtype) -> dict[str, Tensor]:
    """The weights as they will be after storing them in `dtype`: float32 values on the CPU, rounded."""
    stored = checkpoints.STORAGE[dtype]
    return {name: t.detach().cpu().to(stored).float() if t.is_floating_point() else t.detach().cpu() for name, t in state.items()}


def save_vae(vae: WanVae, directory: Path, dtype: StoredDtype) -> None:
    """Write a VAE and its configuration, latent constants included, into an artifact that is being made."""
    checkpoints.save(vae, directory, family=VAE_FAMILY, config=asdict(vae.config), storage=dtype)


def load_vae(directory: Path | str) -> tuple[WanVae, Manifest]:
    """A VAE artifact's network, float32, frozen and in evaluation mode, and its manifest.

    Raises:
        ArtifactError: it is no VAE artifact, is damaged, or does not fit this version.
    """
    directory = Path(directory)
    manifest = read_manifest(directory, kind="vae")
    stored = checkpoints.read(directory, VAE_FAMILY)
    sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.config.items()}
    try:
        vae = WanVae(WanVaeConfig(**sizes))
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"'{directory}' holds no VAE of this version: {error}. Train the VAE again.") from error
    checkpoints.fit(vae, stored.tensors, f"'{directory}'")
    return vae.eval().requires_grad_(False), manifest


def with_latent_constants(config: WanVaeConfig, mean: Tensor, std: Tensor) -> WanVaeConfig:
    """The same VAE with other constants [z_dim] to normalise its latents by."""
    return replace(config, latent_mean=tuple(mean.tolist()), latent_std=tuple(std.tolist()))

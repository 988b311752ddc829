"""A VAE in the latent space of another one, so that a policy trained on the other's latents can go on.

It starts from the other's weights and is trained, beside the pixels, to give the same normalised latents: on pictures of
more tasks, or with fewer residual blocks.  The encoder runs before every action chunk, so its blocks are the dearest ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from edgewam.core.errors import ArtifactError
from edgewam.models import checkpoints
from edgewam.models.wan_vae import WanVae
from edgewam.training.weights import load_vae

_BLOCK = re.compile(r"^(encoder\.downsamples|decoder\.upsamples)\.(\d+)\.(?:downsamples|upsamples)\.(\d+)\.")


class LatentReference:
    """The VAE artifact at `path`, whose normalised latents are the target."""

    def __init__(self, path: Path, device: str) -> None:
        self.path = path
        vae, manifest = load_vae(path)
        self.vae, self.digest = vae.to(device), manifest.digest

    def start(self, vae: WanVae) -> None:
        """Give `vae` the weights of the reference's blocks that it still has.

        Raises:
            ArtifactError: the two differ in more than the number of residual blocks, or the reference has fewer.
        """
        config = replace(vae.config, latent_mean=self.vae.config.latent_mean, latent_std=self.vae.config.latent_std)
        blocks = (self.vae.config.num_res_blocks, config.num_res_blocks)
        if replace(config, num_res_blocks=blocks[0]) != self.vae.config or blocks[1] > blocks[0]:
            raise ArtifactError(
                f"'{self.path}' has sizes {self.vae.config}; a VAE in its latent space may only have fewer residual blocks per "
                "stage. Give another one, or train without it."
            )
        checkpoints.fit(vae, without_late_blocks(self.vae.state_dict(), *blocks), f"'{self.path}'")

    def distance(self, mean: Tensor, video: Tensor) -> Tensor:
        """Mean square between raw means [B, z, T, h, w] of the smaller VAE and the reference's, in normalised units."""
        with torch.no_grad():
            target = self.vae.encode_moments(video)[0]
        return ((mean - target) / self.vae.latent_std).float().square().mean()


def without_late_blocks(state: Mapping[str, Tensor], have: int, keep: int) -> dict[str, Tensor]:
    """The weights of a VAE with `have` residual blocks per stage (one more in the decoder) as those of one with `keep`."""
    kept = {}
    for name, tensor in state.items():
        if match := _BLOCK.match(name):
            extra = 1 if match[1] == "decoder.upsamples" else 0
            position = int(match[3])
            if keep + extra <= position < have + extra:
                continue
            if position >= have + extra:  # the resampling layer behind the blocks
                name = f"{name[: match.start(3)]}{position - have + keep}{name[match.end(3) :]}"
        kept[name] = tensor
    return kept

"""A full-size AHA-WAM with random weights, drawn on the device itself in its own dtype, and random inputs for it.

Speed does not depend on the values of weights; actions would.  `golden` and `tiny` are the same at small sizes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.results import ROOT
from edgewam.models.aha_wam import AhaWam, AhaWamConfig, full, small
from edgewam.models.aha_wam_config import from_release_json
from edgewam.models.wan_vae import WanVae, WanVaeConfig

TINY_LAYERS = 2  # of "tiny", whose widths are those that the fused kernels take; layer groups need one each


@dataclass(frozen=True)
class Inputs:
    """What the robot's side hands over, on the host: image uint8 [3, H, W], normalised state [1, P]; text and noise are ready."""

    image: Tensor
    proprio: Tensor
    text: Tensor
    noise: Tensor


def sizes(name: str) -> tuple[AhaWamConfig, WanVaeConfig]:
    """Configurations of "full", of "golden" (the sizes of the golden arrays), or of "tiny": two layers of `small`."""
    if name == "full":
        return full(), WanVaeConfig()
    if name == "tiny":
        return replace(small(), num_layers=TINY_LAYERS, memory_slots=2), WanVaeConfig(dim=4, dec_dim=4, num_res_blocks=1)
    release = json.loads((ROOT / "tests" / "golden" / "aha_wam" / "config_ahawam.json").read_text())
    vae = release["vae"]
    return from_release_json(release), WanVaeConfig(dim=vae["dim"], dec_dim=vae["dec_dim"], z_dim=vae["z_dim"])


def random_policy(name: str, dtype: torch.dtype, device: str, seed: int) -> tuple[AhaWam, WanVae]:
    """Network and VAE whose weights were drawn on the device itself: nothing is built on the host first."""
    model_config, vae_config = sizes(name)
    with torch.device("meta"):
        model, vae = AhaWam(model_config), WanVae(vae_config)
    for module in (model, vae):
        module.to(dtype).to_empty(device=device)
        fill_randomly(module, torch.Generator(device).manual_seed(seed))
        module.eval().requires_grad_(False)
    # buffers hold whatever was in memory: these two are constants of the configuration, and there are no others
    assert not list(model.buffers()) and {name for name, _ in vae.named_buffers()} == {"latent_mean", "latent_std"}
    shape = vae.latent_mean.shape
    vae.latent_mean.copy_(torch.tensor(vae_config.latent_mean).view(shape))
    vae.latent_std.copy_(torch.tensor(vae_config.latent_std).view(shape))
    return model, vae


@torch.no_grad()
def fill_randomly(module: nn.Module, generator: torch.Generator) -> None:
    """Matrices get variance 1 / fan-in so that activations neither vanish nor overflow; vectors of norms stay near one."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1 and parameter.shape[0] > 1:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        elif name.endswith(("gamma", "norm_q.weight", "norm_k.weight", "norm3.weight", ".0.weight")):
            parameter.normal_(1.0, 0.05, generator=generator)
        else:
            parameter.normal_(0.0, 0.02, generator=generator)


def random_inputs(config: AhaWamConfig, device: str, seed: int) -> Inputs:
    """Seeded image and state on the host, text rows (a third of them real words, the rest zero rows) on the device."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, config.image_height, config.image_width), generator=generator, dtype=torch.uint8)
    text = torch.randn(1, config.text_len, config.text_dim, generator=generator)
    text[:, max(1, config.text_len // 3) :] = 0
    noise = torch.randn(1, config.chunk_size, config.action_dim, generator=generator)
    proprio = torch.randn(1, config.proprio_dim, generator=generator)
    return Inputs(image, proprio, text.to(device), noise)

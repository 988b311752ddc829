"""A VAE with fewer blocks starts as the larger one and comes to give its latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgewam.core.artifacts import read_manifest
from edgewam.core.errors import ArtifactError
from edgewam.data.dataset import Dataset
from edgewam.models.wan_vae import WanVae
from edgewam.training.log import read_log
from edgewam.training.vae import train_vae
from edgewam.training.vae_reproduction import LatentReference, without_late_blocks
from edgewam.training.weights import load_vae
from tests.training import tiny

Road = tuple[Dataset, Path, Path]
SMALLER = replace(tiny.tiny_vae_config(), num_res_blocks=1)
WIDER = replace(SMALLER, dim=8)


def test_what_is_kept_are_the_first_blocks_and_everything_behind_them() -> None:
    torch.manual_seed(0)
    larger, smaller = WanVae(tiny.tiny_vae_config()), WanVae(SMALLER)
    for name in ("encoder", "decoder"):  # residual blocks that add nothing: dropping them changes nothing
        for stage in getattr(larger, name).children():
            for module in stage.modules():
                if hasattr(module, "residual") and torch.nn.Identity is type(module.shortcut):
                    torch.nn.init.zeros_(module.residual[6].weight)
                    torch.nn.init.zeros_(module.residual[6].bias)
    smaller.load_state_dict(without_late_blocks(larger.state_dict(), 2, 1))
    video = torch.randn(1, 3, 5, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(smaller.encode(video), larger.encode(video), rtol=0, atol=1e-5)
        latent = torch.randn(1, 48, 2, 2, 2)
        torch.testing.assert_close(smaller.decode(latent), larger.decode(latent), rtol=0, atol=1e-5)


def test_the_smaller_vae_comes_to_give_the_latents_of_the_larger_one(road: Road, tmp_path: Path) -> None:
    dataset, reference, _ = road
    loop = replace(tiny.LOOP, steps=60, warmup_steps=4)
    config = tiny.vae_training(dataset, vae=SMALLER, loop=loop, lr=3e-3, reproduce=reference, reproduce_weight=1.0)
    measured = train_vae(config, tmp_path / "vae")
    distances = [line["latent_distance"] for line in read_log(tmp_path / "vae")]
    assert distances[-1] < 0.3 * distances[0]
    assert measured["latent_distance"] ** 2 < 2 * distances[-1], "held-out frames, the weights that are stored"
    vae, larger = load_vae(tmp_path / "vae")[0], load_vae(reference)[0]
    assert vae.config.num_res_blocks == 1
    assert (vae.config.latent_mean, vae.config.latent_std) == (larger.config.latent_mean, larger.config.latent_std)
    assert read_manifest(tmp_path / "vae").parents == {
        "dataset": dataset.digest,
        "reproduce": read_manifest(reference).digest,
    }


@pytest.mark.parametrize("config", [WIDER, replace(SMALLER, num_res_blocks=3)], ids=["wider", "more blocks"])
def test_only_fewer_blocks_are_accepted(road: Road, config: object) -> None:
    with pytest.raises(ArtifactError, match="may only have fewer residual blocks"):
        LatentReference(road[1], "cpu").start(WanVae(config))  # type: ignore[arg-type]

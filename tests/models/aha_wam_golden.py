"""Golden arrays of the AHA-WAM family: where they are, how they are named, and how near we must come.

Every size comes from the folder's configuration file and every step or chunk list from the arrays' names, so another
folder of the same layout (EDGEWAM_GOLDEN) is put to the same tests.
"""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from edgewam.models.aha_wam_config import AhaWamConfig, from_release_json
from edgewam.models.aha_wam_loss import LossBatch
from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.wan_vae import WanVae, WanVaeConfig

FOLDER = Path(os.environ.get("EDGEWAM_GOLDEN", Path(__file__).parents[1] / "golden" / "aha_wam"))

STAGE_ATOL = 2e-5  # float32 sums in another order; deliberate mistakes exceed 1e-3 (facts/aha_wam.md 11)
SAMPLER_ATOL = 5e-5  # 10 and 16 network evaluations in a row add up
GRADIENT_RTOL = 1e-5  # of each tensor's largest entry: gradients span orders of magnitude between tensors


@functools.cache
def release_json() -> dict:
    """The configuration file as stored."""
    return json.loads((FOLDER / "config_ahawam.json").read_text())


@functools.cache
def config(horizon: int | None = None) -> AhaWamConfig:
    """Our configuration; the offset arrays have their own horizon."""
    base = from_release_json(release_json())
    return base if horizon is None else AhaWamConfig(**{**base.to_json(), "horizon": horizon})


@functools.cache
def arrays(name: str) -> dict[str, Tensor]:
    """All tensors of one golden file."""
    return load_file(FOLDER / f"{name}.safetensors")


def layers(name: str, prefix: str, suffixes: tuple[str, str] = ("k", "v")) -> list[tuple[Tensor, Tensor]]:
    """Per-layer (key, value) pairs stored as `<prefix>.layer<i>.<suffix>`."""
    data = arrays(name)
    return [tuple(data[f"{prefix}.layer{i}.{s}"] for s in suffixes) for i in range(config().num_layers)]


def indices(name: str, pattern: str) -> list[int]:
    """Sorted numbers that fill the group of `pattern` among a file's tensor names."""
    return sorted({int(m.group(1)) for key in arrays(name) if (m := re.match(pattern, key))})


def model(checkpoint: str = "checkpoint_ahawam") -> AhaWam:
    """The network with golden weights."""
    stored = torch.load(FOLDER / f"{checkpoint}.pt", weights_only=True)
    net = AhaWam(config())
    groups = ("mot", "proprio_encoder", "action_obs_visual_proj", "chunk_obs_query_encoder")
    net.load_state_dict({f"{group}.{key}": value for group in groups for key, value in stored[group].items()})
    return net.eval()


@functools.cache
def vae() -> WanVae:
    """The image and video VAE with golden weights."""
    sizes = release_json()["vae"]
    net = WanVae(WanVaeConfig(dim=sizes["dim"], dec_dim=sizes["dec_dim"], z_dim=sizes["z_dim"]))
    net.load_state_dict(torch.load(FOLDER / "vae_raw.pt", weights_only=True))
    return net.eval().requires_grad_(False)


def encode_images(images_u8: Tensor) -> Tensor:
    """Latents [..., Cz, h, w] of images [..., 3, H, W] uint8, each encoded alone."""
    pixels = images_u8.flatten(0, -4).float() * (2 / 255) - 1
    latent = vae().encode(pixels.unsqueeze(2))[:, :, 0]
    return latent.unflatten(0, images_u8.shape[:-3])


def loss_batch(name: str) -> tuple[LossBatch, AhaWamConfig]:
    """The batch of a stored loss (offset slicing and image encoding done here) and the configuration it needs."""
    data = arrays(name)
    chunk = config().chunk_size
    offset = data.get("batch.action_offset", torch.zeros(len(data["batch.action"]), dtype=torch.int64))
    target = data.get("intermediate.action_target_clean", data["batch.action"])
    horizon = target.shape[1]
    rows = offset[:, None] + torch.arange(horizon)
    sliced = {
        key: torch.stack([x[i] for x, i in zip(data[f"batch.{key}"], rows, strict=True)])
        for key in ("action", "action_is_pad", "proprio")
    }
    video = data["batch.video_u8"]
    if "batch.chunk_obs_images_u8" in data:
        chunk_images = data["batch.chunk_obs_images_u8"]
    else:
        every = chunk // release_json()["golden_sizes"]["action_video_freq_ratio"]  # sampled frames per chunk
        chunk_images = video[:, :, : every * (horizon // chunk) : every].transpose(1, 2)
    latents = data.get("batch.vae_latents_of_video")
    if latents is None:
        latents = vae().encode(video.float() * (2 / 255) - 1)
    return LossBatch(
        actions=sliced["action"],
        action_is_pad=sliced["action_is_pad"].bool(),
        proprio=sliced["proprio"][:, ::chunk],
        context=data["batch.context"],
        video_latents=latents,
        image_is_pad=data["batch.image_is_pad"].bool(),
        video_frame_ids=data["batch.video_temporal_position_ids"],
        history_latents=encode_images(data["batch.video_history_u8"].transpose(1, 2)),
        history_frame_ids=data["batch.video_history_frame_indices"],
        history_valid_len=data["batch.video_history_valid_len"],
        chunk_latents=encode_images(chunk_images),
    ), config(horizon)

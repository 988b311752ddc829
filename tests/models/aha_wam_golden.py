"""Golden arrays of the AHA-WAM family: where they are, how they are named, and how near we must come.

Every size comes from the folder's configuration file and every step or chunk list from the arrays' names, so another
folder of the same layout (EDGEWAM_GOLDEN) is put to the same tests.
"""

from __future__ import annotations

import functools
import json
import re

import torch
from safetensors.torch import load_file
from torch import Tensor

from edgewam.models.aha_wam_config import AhaWamConfig, from_release_json
from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.flow_loss import LossBatch
from edgewam.models.wan_vae import WanVae, WanVaeConfig
from tests.golden import golden_dir

FOLDER = golden_dir()

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
    """Sorted numbers that fill the group of `pattern` among a file's tensor names; a file without any is refused."""
    found = sorted({int(m.group(1)) for key in arrays(name) if (m := re.match(pattern, key))})
    assert found, f"no tensor of {name} is named like {pattern}"
    return found


def model(checkpoint: str = "checkpoint_ahawam") -> AhaWam:
    """The network with golden weights."""
    stored = torch.load(FOLDER / f"{checkpoint}.pt", weights_only=True)
    net = AhaWam(config())
    groups = ("mot", "proprio_encoder", "action_obs_visual_proj", "chunk_obs_query_encoder")
    net.load_state_dict({f"{group}.{key}": value for group in groups for key, value in stored[group].items()})
    return net.eval()


def vae_config() -> WanVaeConfig:
    """Sizes of the golden VAE; the latent constants are the released ones."""
    sizes = release_json()["vae"]
    return WanVaeConfig(
        dim=sizes["dim"], dec_dim=sizes["dec_dim"], z_dim=sizes["z_dim"], dim_mult=tuple(sizes["dim_mult"]),
        num_res_blocks=sizes["num_res_blocks"], temporal_downsample=tuple(sizes["temperal_downsample"]),
    )  # fmt: skip


def read_vae(config: WanVaeConfig | None = None) -> WanVae:
    """A frozen VAE of its own with golden weights, for tests that change it; `config` may give other latent constants."""
    net = WanVae(config or vae_config())
    net.load_state_dict(torch.load(FOLDER / "vae_raw.pt", weights_only=True))
    return net.eval().requires_grad_(False)


@functools.cache
def vae() -> WanVae:
    """The image and video VAE with golden weights, shared by all tests."""
    return read_vae()


def scaled(images_u8: Tensor) -> Tensor:
    """Float model input in [-1, 1] of stored bytes."""
    return images_u8.float() * (2 / 255) - 1


def encode_images(images_u8: Tensor) -> Tensor:
    """Latents [..., Cz, h, w] of images [..., 3, H, W] uint8, each encoded alone."""
    latent = vae().encode(scaled(images_u8.flatten(0, -4)).unsqueeze(2))[:, :, 0]
    return latent.unflatten(0, images_u8.shape[:-3])


def loss_batch(name: str) -> tuple[LossBatch, AhaWamConfig]:
    """The batch of a stored loss (offset slicing and image encoding done here) and the configuration it needs."""
    data, sizes = arrays(name), release_json()["golden_sizes"]
    chunk, has_offset = config().chunk_size, "batch.action_offset" in data
    offset = data["batch.action_offset"] if has_offset else torch.zeros(len(data["batch.action"]), dtype=torch.int64)
    horizon = sizes["offset_action_horizon"] if has_offset else config().horizon
    rows = offset[:, None] + torch.arange(horizon)
    sliced = {
        key: torch.stack([x[i] for x, i in zip(data[f"batch.{key}"], rows, strict=True)])
        for key in ("action", "action_is_pad", "proprio")
    }
    video = data["batch.video_u8"]
    if has_offset:
        chunk_images = data["batch.chunk_obs_images_u8"]
    else:  # every chunk starts at a frame of the clip
        starts = torch.arange(0, horizon, chunk) // sizes["action_video_freq_ratio"]
        chunk_images = video[:, :, starts].transpose(1, 2)
    return LossBatch(
        actions=sliced["action"],
        action_is_pad=sliced["action_is_pad"].bool(),
        proprio=sliced["proprio"][:, ::chunk],
        context=data["batch.context"],
        video_latents=vae().encode(scaled(video)),
        image_is_pad=data["batch.image_is_pad"].bool(),
        video_frame_ids=data["batch.video_temporal_position_ids"],
        history_latents=encode_images(data["batch.video_history_u8"].transpose(1, 2)),
        history_frame_ids=data["batch.video_history_frame_indices"],
        history_valid_len=data["batch.video_history_valid_len"],
        chunk_latents=encode_images(chunk_images),
    ), config(horizon)

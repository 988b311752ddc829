"""Golden arrays of the Fast-WAM family, in the same folder as AHA-WAM's and with the same VAE and tolerances."""

from __future__ import annotations

import functools
import json

import torch

from edgewam.models import fast_wam
from edgewam.models.dit_block import KeyValue
from edgewam.models.fast_wam import FastWam, FastWamConfig
from edgewam.models.flow_loss import LossBatch, Noise
from tests.models import aha_wam_golden as golden

INFERENCE, LOSS = "fastwam_inference", "fastwam_training_loss"
CHECKPOINT = golden.FOLDER / "checkpoint_fastwam.pt"


@functools.cache
def config() -> FastWamConfig:
    """Our configuration; the released one does not hold the length of the text."""
    stored = json.loads((golden.FOLDER / "config_fastwam.json").read_text())
    return fast_wam.from_release_json(stored, golden.arrays(INFERENCE)["text.context"].shape[1])


def model() -> FastWam:
    """The network with golden weights."""
    return fast_wam.load(CHECKPOINT, config()).eval()


def layers(prefix: str) -> list[KeyValue]:
    """Per-layer (key, value) pairs stored as `<prefix>.layer<i>.k` and `.v`."""
    data = golden.arrays(INFERENCE)
    return [(data[f"{prefix}.layer{i}.k"], data[f"{prefix}.layer{i}.v"]) for i in range(config().num_layers)]


def loss_batch() -> LossBatch:
    """The batch of the stored loss; what Fast-WAM does not use is empty or says nothing."""
    data = golden.arrays(LOSS)
    latents = golden.vae().encode(golden.scaled(data["batch.video_u8"]))
    b, channels, num_frames, *size = latents.shape
    return LossBatch(
        actions=data["batch.action"],
        action_is_pad=data["batch.action_is_pad"].bool(),
        proprio=data["batch.proprio"][:, :1],
        context=data["batch.context"],
        video_latents=latents,
        image_is_pad=data["batch.image_is_pad"].bool(),
        video_frame_ids=torch.full((b, num_frames), 99),
        history_latents=torch.zeros(b, 0, channels, *size),
        history_frame_ids=torch.zeros(b, 0, dtype=torch.int64),
        history_valid_len=torch.zeros(b, dtype=torch.int64),
        chunk_latents=torch.zeros(b, 0, channels, *size),
    )


def stored_noise() -> Noise:
    """The draws of the stored loss."""
    data = golden.arrays(LOSS)
    return Noise(
        video=data["intermediate.noise_video"],
        video_timestep=data["intermediate.timestep_video"],
        action=data["intermediate.noise_action"][:, None],
        action_timestep=data["intermediate.timestep_action"][:, None, None],
    )

"""A dataset, a VAE and a policy so small that the whole training road takes seconds.

Frames are real mp4, sizes are the least that the structure allows: canvas 96x64, latent 6x4, six planner tokens.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from edgewam.core.artifacts import write_artifact
from edgewam.data.dataset import Dataset
from edgewam.data.schema import Episode
from edgewam.data.windows import WindowLayout
from edgewam.models.aha_wam_config import AhaWamConfig
from edgewam.models.wan_vae import WanVae, WanVaeConfig
from edgewam.training.loop import LoopConfig
from edgewam.training.policy import PolicyTraining
from edgewam.training.vae import VaeTraining
from edgewam.training.weights import save_vae, with_latent_constants
from tests.data.synthetic import TASKS, dataset_of, episode

CANVAS = (96, 64)
LOOP = LoopConfig(steps=4, warmup_steps=2, log_every=1, threads=1, tensorboard=False, autocast=False)
LAYOUT = WindowLayout(chunk=4, horizon=8, stride=2, max_offset=3, num_video_frames=9, num_history=2, history_spacings=(4, 8))
MODEL = AhaWamConfig(
    num_layers=2, num_heads=2, head_dim=12, video_dim=24, video_ffn_dim=32, action_hidden_dim=16, action_ffn_dim=32, text_dim=16,
    text_len=8, freq_dim=8, image_height=96, image_width=64, chunk_size=4, horizon=8, num_queries=3, memory_slots=2,
    rope_stride=2, gate_init=0.0,
)  # fmt: skip


def tiny_vae_config() -> WanVaeConfig:
    plain = WanVaeConfig(dim=4, dec_dim=4)
    return with_latent_constants(plain, torch.zeros(plain.z_dim), torch.ones(plain.z_dim))


def smooth_episode(length: int, seed: int) -> Episode:
    """Joints that follow slow sines, actions that lead them by one step, a cube that moves with them."""
    base = episode(length, seed, TASKS[seed % 2])
    time = np.arange(length + 1)[:, None] / 9.0
    joints = np.sin(time + np.arange(14) * 0.4 + seed).astype(np.float32)
    cube = np.repeat(joints[:-1, :1] * 0.1, 7, 1)
    return replace(base, states=joints[:-1], actions=joints[1:], environment_states=cube)


def dataset_at(path: Path, num_episodes: int = 3) -> Dataset:
    return dataset_of(path, [smooth_episode(40 + 6 * seed, seed) for seed in range(num_episodes)])


def vae_at(path: Path, seed: int = 0) -> Path:
    """An untrained VAE as an artifact."""
    torch.manual_seed(seed)
    vae = WanVae(tiny_vae_config())
    with write_artifact(path, "vae", config={"seed": seed}) as directory:
        save_vae(vae, directory, "float32")
    return path


def vae_training(dataset: Dataset, **changes: object) -> VaeTraining:
    config = VaeTraining(
        dataset=dataset.path, loop=LOOP, vae=tiny_vae_config(), height=CANVAS[0], width=CANVAS[1], batch_images=4,
        batch_clips=((5, 2),), clip_every=2, stride=2,
    )  # fmt: skip
    return replace(config, **changes)  # type: ignore[arg-type]


def policy_training(dataset: Dataset, vae: Path, latents: Path, **changes: object) -> PolicyTraining:
    config = PolicyTraining(
        dataset=dataset.path,
        vae=vae,
        latents=latents,
        loop=LOOP,
        model=MODEL,
        layout=LAYOUT,
        batch_size=4,
        action_draws=2,
        start_stride=6,
    )
    return replace(config, **changes)  # type: ignore[arg-type]

"""What is measured of a trained VAE: pixel errors, latent constants, latent distance, what a probe finds, a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from edgewam.data.schema import Images
from edgewam.models.wan_vae import FRAMES_PER_LATENT, WanVae
from edgewam.training.frames import FrameSet
from edgewam.training.vae_reproduction import LatentReference


def to_video(images: npt.NDArray[np.uint8]) -> Tensor:
    """Canvases uint8 [B, T, H, W, 3] -> float32 [B, 3, T, H, W] in [-1, 1], as at run time."""
    return torch.from_numpy(images).permute(0, 4, 1, 2, 3).float() * (2.0 / 255.0) - 1.0


@torch.inference_mode()
def latent_constants(vae: WanVae, data: FrameSet, seed: int, num_images: int = 512, num_clips: int = 32) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [z_dim] of raw latents: single images and the later latents of clips count alike."""
    generator = np.random.default_rng([seed, 7])
    device = next(vae.parameters()).device
    rows = generator.choice(len(data.images), min(num_images, len(data.images)), replace=False)
    images = torch.cat(
        [
            vae.encode_moments(to_video(data.images[part, None]).to(device))[0]
            for part in np.array_split(rows, max(1, len(rows) // 32))
        ]
    )
    groups = [images[:, :, 0]]
    starts = data.clip_starts(1 + 3 * FRAMES_PER_LATENT)
    if len(starts):
        chosen = generator.choice(starts, min(num_clips, len(starts)), replace=False)
        clips = [
            vae.encode_moments(to_video(data.images[start + np.arange(13)][None]).to(device))[0][:, :, 1:] for start in chosen
        ]
        groups.append(torch.cat(clips).transpose(1, 2).flatten(0, 1))
    mean = torch.stack([g.mean((0, 2, 3)) for g in groups]).mean(0)
    square = torch.stack([(g - mean[:, None, None]).square().mean((0, 2, 3)) for g in groups]).mean(0)
    return mean.cpu(), square.sqrt().clamp(min=1e-3).cpu()


@torch.inference_mode()
def pixel_errors(vae: WanVae, held: FrameSet) -> dict[str, Any]:
    """Pixel errors on held-out frames, values in [-1, 1], and the size of the normalised latents."""
    errors, latents = [], []
    for rows in np.array_split(np.arange(len(held.images)), max(1, len(held.images) // 32)):
        video = to_video(held.images[rows, None])
        latent = vae.encode(video)
        errors.append((vae.decode(latent) - video).square().mean((1, 2, 3, 4)))
        latents.append(latent)
    measured: dict[str, Any] = {
        "pixel_mse_image": float(torch.cat(errors).mean()),
        "latent_std": float(torch.cat(latents).std()),
        "held_out_frames": len(held.images),
    }
    starts = held.clip_starts(13)[:: max(1, len(held.clip_starts(13)) // 16)]
    if len(starts):
        clips = [to_video(held.images[start + np.arange(13)][None]) for start in starts]
        measured["pixel_mse_clip"] = float(
            torch.stack([(vae.decode(vae.encode(clip)) - clip).square().mean() for clip in clips]).mean()
        )
    return measured


@torch.inference_mode()
def latent_distance(vae: WanVae, reference: LatentReference, held: FrameSet) -> float:
    """Root mean square between the normalised latents of held-out frames and the reference's."""
    parts = np.array_split(np.arange(len(held.images)), max(1, len(held.images) // 32))
    videos = [to_video(held.images[rows, None]) for rows in parts]
    squares = [reference.distance(vae.encode_moments(v)[0], v) * len(v) for v in videos]
    return float((torch.stack(squares).sum() / len(held.images)).sqrt())


@torch.inference_mode()
def probe_error_cm(probe: Callable[[Tensor], Tensor], images: Images, truth: npt.NDArray[np.float32]) -> dict[str, float]:
    """Median and 95th percentile of the distance between probed and true position, cm.

    probe: video [B, 3, 1, H, W] -> metres [B, 3].  images: canvases uint8 [N, H, W, 3].  truth: metres [N, 3].
    """
    parts = np.array_split(np.arange(len(images)), max(1, len(images) // 32))
    found = np.concatenate([probe(to_video(images[rows, None])).numpy() for rows in parts])
    distance = 100.0 * np.linalg.norm(found - truth, axis=1)
    return {"median": float(np.median(distance)), "p95": float(np.quantile(distance, 0.95))}


@torch.inference_mode()
def write_picture(path: Path, vae: WanVae, held: FrameSet, columns: int = 8) -> None:
    """Held-out canvases above their reconstructions."""
    rows = np.linspace(0, len(held.images) - 1, columns).astype(int)
    video = to_video(held.images[rows, None])
    again = ((vae.decode(vae.encode(video)) + 1.0) * 127.5).round().byte()[:, :, 0].permute(0, 2, 3, 1).numpy()
    sheet = np.concatenate([np.concatenate(list(held.images[rows]), 1), np.concatenate(list(again), 1)], 0)
    Image.fromarray(sheet).save(path)

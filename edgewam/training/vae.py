"""Train the small Wan VAE on a dataset's cameras, measure its latents and write the artifact.

Most batches are single images (the cheap two-dimensional road); the others are clips of 5 and 13 frames, eight control
steps apart, for the causal temporal layers.  Beside the pixels, a throw-away probe must find the cube's position in the
latent: that uses privileged simulator state at training time, never when the policy runs, and keeps a cube of 5x5 pixels
from drowning in 30,720.  Latents are normalised afterwards with their measured mean and standard deviation.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from edgewam.core.artifacts import write_artifact
from edgewam.data.dataset import Dataset
from edgewam.data.schema import Images
from edgewam.models import checkpoints
from edgewam.models.wan_vae import FRAMES_PER_LATENT, WanVae, WanVaeConfig
from edgewam.training.frames import FrameSet, held_out
from edgewam.training.log import LOG
from edgewam.training.loop import LoopConfig, Progress, train
from edgewam.training.optimizers import ParameterGroup
from edgewam.training.weights import StoredDtype, load_vae, rounded, save_vae, with_latent_constants


def small_vae() -> WanVaeConfig:
    """The VAE of the policy `small`: Wan2.2's structure at a tenth of its width."""
    plain = WanVaeConfig(dim=16, dec_dim=8)
    return with_latent_constants(plain, torch.zeros(plain.z_dim), torch.ones(plain.z_dim))


@dataclass(frozen=True, kw_only=True)
class VaeTraining:
    """What to train on and how.  Sizes in pixels, strides in control steps."""

    dataset: Path
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(minutes=16.0, warmup_steps=50))
    vae: WanVaeConfig = field(default_factory=small_vae)
    init_from: Path | None = None  # a VAE artifact to start from
    height: int = 192
    width: int = 160
    batch_images: int = 32
    batch_clips: tuple[tuple[int, int], ...] = ((5, 6), (13, 2))  # (frames, clips) of the clip batches, in turn
    clip_every: int = 4  # every so many batches is one of clips
    stride: int = 8  # between the frames of a clip, as in the planner's clips
    max_frames: int = 12_000
    lr: float = 1e-3
    probe_weight: float = 0.05  # 0: no privileged state needed
    probe_columns: tuple[int, ...] = (0, 1, 2)  # of observation.environment_state: the cube's x, y, z in metres
    latent_weight: float = 1e-4  # on the squared raw mean
    latent_noise: float = 0.05  # on the raw mean, in training only
    weights_dtype: StoredDtype = "float32"


class VaeTask:
    """VAE and probe as one module; a batch is ("image" or "clip", rows, frames)."""

    def __init__(self, config: VaeTraining, data: FrameSet, target: npt.NDArray[np.float32] | None, digest: str) -> None:
        torch.manual_seed(config.loop.seed)
        self.config, self.data, self.target = config, data, target
        latent_size = config.vae.z_dim * (config.height // 16) * (config.width // 16)
        outputs = 0 if target is None else target.shape[1]
        self.module: nn.Module = nn.ModuleDict({"vae": WanVae(config.vae), "probe": _probe(latent_size, outputs)})
        self.module.to(config.loop.device)
        names = (
            "batch_images",
            "batch_clips",
            "clip_every",
            "stride",
            "max_frames",
            "lr",
            "probe_weight",
            "latent_weight",
            "latent_noise",
        )
        settings = {name: getattr(config, name) for name in names}
        self.identity: Mapping[str, Any] = {"task": "vae", "dataset": digest, "vae": asdict(config.vae), **settings}
        self._clips = {frames: data.clip_starts(frames) for frames, _ in config.batch_clips}
        if short := [frames for frames, starts in self._clips.items() if len(starts) == 0]:
            raise ValueError(
                f"No episode has {short[0]} frames {config.stride} steps apart; shorten batch_clips or record longer episodes."
            )

    @property
    def vae(self) -> WanVae:
        """The network that is kept."""
        return self.module["vae"]  # type: ignore[index, return-value]

    def parameter_groups(self) -> list[ParameterGroup]:
        """Everything, AdamW."""
        return [ParameterGroup("adamw", dict(self.module.named_parameters()), lr=self.config.lr, betas=(0.9, 0.99))]

    def batch(self, index: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        """Rows [B, T] of the frame set; T = 1 for single images."""
        config = self.config
        if config.batch_clips and index % config.clip_every == config.clip_every - 1:
            frames, clips = config.batch_clips[index // config.clip_every % len(config.batch_clips)]
            starts = generator.choice(self._clips[frames], clips)
            return starts[:, None] + np.arange(frames)
        return generator.choice(len(self.data.images), (config.batch_images, 1), replace=False)

    def loss(self, batch: npt.NDArray[np.int64], generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """Pixels + probe + latent size."""
        config, device = self.config, self.config.loop.device
        video = to_video(self.data.images[batch]).to(device)
        mean, _ = self.vae.encode_moments(video)
        noise = config.latent_noise * torch.randn(mean.shape, generator=generator).to(device)
        noisy = mean + noise
        # constants are 0 and 1 while training: raw and normalised latents are the same
        pixels = (self.vae.decode(noisy, clamp=False).float() - video).square().mean()
        size = mean.float().square().mean()
        loss = pixels + config.latent_weight * size
        kind = "clip" if batch.shape[1] > 1 else "image"
        details: dict[str, Tensor | float] = {f"pixel_mse_{kind}": pixels.detach(), "latent_square": size.detach()}
        if self.target is not None:
            found = self.module["probe"](noisy[:, :, 0].flatten(1)).float()  # type: ignore[index]
            probe = (found - torch.from_numpy(self.target[batch[:, 0]]).to(device)).square().mean()
            loss = loss + config.probe_weight * probe
            details["probe_mse"] = probe.detach()
        return loss, details

    def describe(self, batch: npt.NDArray[np.int64]) -> str:
        """Episodes and control steps of the first frames."""
        places = zip(self.data.episode[batch[:, 0]], self.data.step[batch[:, 0]], strict=True)
        return ", ".join(f"episode {episode} step {step}" for episode, step in list(places)[:4]) + (
            ", ..." if len(batch) > 4 else ""
        )


def train_vae(config: VaeTraining, out: Path | str, progress: Callable[[Progress], None] | None = None) -> dict[str, Any]:
    """Train, measure on held-out episodes and write the artifact `out` (kind "vae"); returns what was measured.

    The running state lives in `<out>.training` beside it; a run that was cut goes on from there.

    Raises:
        EdgewamError: what the dataset or the loop refuses.
    """
    out = Path(out)
    work = out.parent / f"{out.name}.training"
    dataset = Dataset.open(config.dataset)
    split = dataset.num_episodes - held_out(dataset.num_episodes)
    size, probing = (config.height, config.width), config.probe_weight > 0
    data = FrameSet.load(dataset, range(split), size, config.stride, config.max_frames, config.loop.seed, probing)
    target, spread = None, np.ones(len(config.probe_columns), np.float32)
    if data.environment is not None:
        raw = data.environment[:, list(config.probe_columns)]
        center, spread = raw.mean(0), raw.std(0) + np.float32(1e-6)
        target = (raw - center) / spread
    task = VaeTask(config, data, target, dataset.digest)
    parents = {"dataset": dataset.digest}
    if config.init_from is not None:
        start, manifest = load_vae(config.init_from)
        checkpoints.fit(task.vae, start.state_dict(), f"'{config.init_from}'")
        parents["init_from"] = manifest.digest
    result = train(task, config.loop, work, progress=progress)
    if result.average is not None:
        task.module.load_state_dict(dict(result.average))
    state = rounded(task.vae.state_dict(), config.weights_dtype)
    task.vae.load_state_dict(state)
    task.module.eval()
    mean, std = latent_constants(task.vae, data, config.loop.seed)
    vae = WanVae(with_latent_constants(config.vae, mean, std)).eval().requires_grad_(False)
    vae.load_state_dict(state)
    held = FrameSet.load(dataset, range(split, dataset.num_episodes), size, config.stride, 512, config.loop.seed, probing)
    measured = _measure(vae, held)
    measured |= {"steps": result.step, "minutes": round(result.elapsed_s / 60, 2), "weights_dtype": config.weights_dtype}
    if held.environment is not None:
        truth = held.environment[:, list(config.probe_columns)]
        measured["probe_error_cm"] = _probe_error_cm(task, held.images, truth, center, spread)
    settings = {**task.identity, "loop": asdict(config.loop), "privileged_training_state": probing}
    with write_artifact(out, "vae", config=json.loads(json.dumps(settings)), parents=parents, measured=measured) as directory:
        save_vae(vae, directory, config.weights_dtype)
        shutil.copyfile(work / LOG, directory / LOG)
        _write_picture(directory / "reconstruction.png", vae, held)
    return measured


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


def _probe(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 64), nn.SiLU(), nn.Linear(64, outputs)) if outputs else nn.Identity()


@torch.inference_mode()
def _measure(vae: WanVae, held: FrameSet) -> dict[str, Any]:
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
def _probe_error_cm(
    task: VaeTask,
    images: Images,
    truth: npt.NDArray[np.float32],
    center: npt.NDArray[np.float32],
    spread: npt.NDArray[np.float32],
) -> dict[str, float]:
    """Median and 95th percentile of the distance between probed and true position on held-out frames, cm."""
    found = []
    for rows in np.array_split(np.arange(len(images)), max(1, len(images) // 32)):
        mean, _ = task.vae.encode_moments(to_video(images[rows, None]).to(task.config.loop.device))
        found.append(task.module["probe"](mean.flatten(1)).cpu().numpy())  # type: ignore[index]
    distance = 100.0 * np.linalg.norm(np.concatenate(found) * spread + center - truth, axis=1)
    return {"median": float(np.median(distance)), "p95": float(np.quantile(distance, 0.95))}


@torch.inference_mode()
def _write_picture(path: Path, vae: WanVae, held: FrameSet, columns: int = 8) -> None:
    """Held-out canvases above their reconstructions."""
    rows = np.linspace(0, len(held.images) - 1, columns).astype(int)
    video = to_video(held.images[rows, None])
    again = ((vae.decode(vae.encode(video)) + 1.0) * 127.5).round().byte()[:, :, 0].permute(0, 2, 3, 1).numpy()
    sheet = np.concatenate([np.concatenate(list(held.images[rows]), 1), np.concatenate(list(again), 1)], 0)
    Image.fromarray(sheet).save(path)

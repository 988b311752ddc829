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
from torch import Tensor, nn

from edgewam.core.artifacts import write_artifact
from edgewam.data.dataset import Dataset
from edgewam.models import checkpoints
from edgewam.models.wan_vae import WanVae, WanVaeConfig
from edgewam.training.frames import FrameSet, held_out
from edgewam.training.log import LOG
from edgewam.training.loop import LoopConfig, Loss, Progress, train, whole_module
from edgewam.training.optimizers import ParameterGroup
from edgewam.training.ranks import WHOLE, Share, one_message
from edgewam.training.vae_measure import latent_constants, latent_distance, pixel_errors, probe_error_cm, to_video, write_picture
from edgewam.training.vae_reproduction import LatentReference
from edgewam.training.weights import StoredDtype, load_vae, rounded, save_vae, with_latent_constants


def small_vae() -> WanVaeConfig:
    """The VAE of the policy `small`: Wan2.2's structure at a tenth of its width, with one residual block per stage."""
    plain = WanVaeConfig(dim=16, dec_dim=8, num_res_blocks=1)
    return with_latent_constants(plain, torch.zeros(plain.z_dim), torch.ones(plain.z_dim))


@dataclass(frozen=True, kw_only=True)
class VaeTraining:
    """What to train on and how.  Sizes in pixels, strides in control steps."""

    dataset: Path
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(minutes=16.0, warmup_steps=50))
    vae: WanVaeConfig = field(default_factory=small_vae)
    init_from: Path | None = None  # a VAE artifact to start from
    reproduce: Path | None = None  # a VAE artifact with more blocks: start from it and keep its latent space
    height: int = 192
    width: int = 160
    composition: str = "three_cameras"  # of the cameras on the canvas, by name
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
    reproduce_weight: float = 0.3  # on the squared distance to the reference's normalised latents
    weights_dtype: StoredDtype = "float32"


class VaeAndProbe(nn.Module):
    """What is trained together."""

    def __init__(self, vae: WanVae, probe: nn.Module) -> None:
        super().__init__()
        self.vae, self.probe = vae, probe


class VaeTask:
    """VAE and probe as one module; a batch is ("image" or "clip", rows, frames)."""

    def __init__(self, config: VaeTraining, data: FrameSet, target: npt.NDArray[np.float32] | None, digest: str) -> None:
        torch.manual_seed(config.loop.seed)
        self.config, self.data, self.target = config, data, target
        self.reference = LatentReference(config.reproduce, config.loop.device) if config.reproduce else None
        latent_size = config.vae.z_dim * (config.height // 16) * (config.width // 16)
        outputs = 0 if target is None else target.shape[1]
        self.module: nn.Module = VaeAndProbe(WanVae(config.vae), _probe(latent_size, outputs))
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
            "reproduce_weight",
        )
        settings = {name: getattr(config, name) for name in names}
        settings |= {"reproduce": self.reference.digest} if self.reference else {}
        settings |= {} if config.composition == "three_cameras" else {"composition": config.composition}
        self.identity: Mapping[str, Any] = {"task": "vae", "dataset": digest, "vae": asdict(config.vae), **settings}
        self._clips = {frames: data.clip_starts(frames) for frames, _ in config.batch_clips}
        if short := [frames for frames, starts in self._clips.items() if len(starts) == 0]:
            raise ValueError(
                f"No episode has {short[0]} frames {config.stride} steps apart; shorten batch_clips or record longer episodes."
            )

    @property
    def vae(self) -> WanVae:
        """The network that is kept."""
        return self.module.vae  # type: ignore[return-value]

    def probed(self, video: Tensor) -> Tensor:
        """What the probe says of images [B, 3, 1, H, W]: standardised columns [B, n] on the CPU."""
        mean, _ = self.vae.encode_moments(video.to(self.config.loop.device))
        return self.module.probe(mean.flatten(1)).cpu()  # type: ignore[operator, no-any-return]

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

    def blocks(self) -> list[nn.Module]:
        """None: it is small."""
        return []

    def loss(self, batch: npt.NDArray[np.int64], generator: torch.Generator, share: Share = WHOLE) -> Loss:
        """Pixels + probe + latent size."""
        config, device = self.config, self.config.loop.device
        size, rows = len(batch), share.rows(len(batch))
        batch = batch[rows]
        video = to_video(self.data.images[batch]).to(device)
        mean, _ = self.vae.encode_moments(video)
        noise = config.latent_noise * torch.randn((size, *mean.shape[1:]), generator=generator)[rows].to(device)
        noisy = mean + noise
        # constants are 0 and 1 while training: raw and normalised latents are the same
        pixels = (self.vae.decode(noisy, clamp=False).float() - video).square().mean()
        square = mean.float().square().mean()
        loss = pixels + config.latent_weight * square
        kind = "clip" if batch.shape[1] > 1 else "image"
        details: dict[str, Tensor | float] = {f"pixel_mse_{kind}": pixels.detach(), "latent_square": square.detach()}
        if self.reference is not None:
            distance = self.reference.distance(mean, video)
            loss = loss + config.reproduce_weight * distance
            details["latent_distance"] = distance.detach()
        if self.target is not None:
            found = self.module.probe(noisy[:, :, 0].flatten(1)).float()  # type: ignore[operator]
            probe = (found - torch.from_numpy(self.target[batch[:, 0]]).to(device)).square().mean()
            loss = loss + config.probe_weight * probe
            details["probe_mse"] = probe.detach()
        return Loss(loss, details, len(batch))

    def describe(self, batch: npt.NDArray[np.int64]) -> str:
        """Episodes and control steps of the first frames."""
        places = zip(self.data.episode[batch[:, 0]], self.data.step[batch[:, 0]], strict=True)
        return ", ".join(f"episode {episode} step {step}" for episode, step in list(places)[:4]) + (
            ", ..." if len(batch) > 4 else ""
        )


@one_message
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
    chosen = (config.loop.seed, probing, config.composition)
    data = FrameSet.load(dataset, range(split), size, config.stride, config.max_frames, *chosen)
    target = None
    center, spread = np.zeros(len(config.probe_columns), np.float32), np.ones(len(config.probe_columns), np.float32)
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
    if task.reference is not None:
        task.reference.start(task.vae)
        parents["reproduce"] = task.reference.digest
    result = train(task, config.loop, work, progress=progress)
    if not result.ranks.is_main:
        return {}
    task.module = whole_module(task.module, result, lambda: VaeTask(config, data, target, dataset.digest).module)
    task.module.load_state_dict(dict(result.weights))
    state = rounded(task.vae.state_dict(), config.weights_dtype)
    task.vae.load_state_dict(state)
    task.module.eval()
    if task.reference is not None:  # the same latent space
        mean, std = task.reference.vae.latent_mean.flatten().cpu(), task.reference.vae.latent_std.flatten().cpu()
    else:
        mean, std = latent_constants(task.vae, data, config.loop.seed)
    vae = WanVae(with_latent_constants(config.vae, mean, std)).eval().requires_grad_(False)
    vae.load_state_dict(state)
    held = FrameSet.load(dataset, range(split, dataset.num_episodes), size, config.stride, 512, *chosen)
    measured = pixel_errors(vae, held)
    if task.reference is not None:
        measured["latent_distance"] = latent_distance(vae, task.reference, held)
    measured |= {"steps": result.step, "minutes": round(result.elapsed_s / 60, 2), "weights_dtype": config.weights_dtype}
    if held.environment is not None:
        truth = held.environment[:, list(config.probe_columns)]
        scale, shift = torch.from_numpy(spread), torch.from_numpy(center)
        measured["probe_error_cm"] = probe_error_cm(lambda video: task.probed(video) * scale + shift, held.images, truth)
    settings = {**task.identity, "loop": asdict(config.loop), "privileged_training_state": probing}
    with write_artifact(out, "vae", config=json.loads(json.dumps(settings)), parents=parents, measured=measured) as directory:
        save_vae(vae, directory, config.weights_dtype)
        shutil.copyfile(work / LOG, directory / LOG)
        write_picture(directory / "reconstruction.png", vae, held)
    return measured


def _probe(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 64), nn.SiLU(), nn.Linear(64, outputs)) if outputs else nn.Identity()

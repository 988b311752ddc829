"""What filling a latent cache is going to take: disk from its shapes, time from some real pictures through the real VAE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from edgewam.core.estimate import Duration, StepPlan, timed, timed_here
from edgewam.data.dataset import Dataset
from edgewam.models.wan_vae import WanVae
from edgewam.training.estimate import module_bytes
from edgewam.training.frames import compose_episode
from edgewam.training.latents import BATCH_IMAGES, LatentPlan, cache_bytes, cache_header, check_header, episodes_done
from edgewam.training.memory import run_memory


@torch.inference_mode()
def estimate_latents(
    out: Path, dataset: Dataset, vae: WanVae, vae_digest: str, plan: LatentPlan, device: str, *,
    before: Mapping[str, int], inputs: tuple[str, ...],
) -> StepPlan:  # fmt: skip
    """The step `build_cache` with these arguments; `before` is what the process holds all the time.

    Raises:
        ArtifactError: the cache there belongs to something else.
    """
    header = cache_header(dataset, vae, vae_digest, plan)
    done = 0
    if (out / "header.json").exists():
        check_header(out, header)
        done = episodes_done(out)
    num_images, num_windows = header["images"][0], header["clips"][0]
    hold = dataset.fps // dataset.camera_hz
    longest = int(np.argmax(dataset.lengths))
    steps = np.arange(0, dataset.lengths[longest], hold, dtype=np.int64)
    few = steps[:BATCH_IMAGES]
    vae = vae.to(device)

    def images() -> None:
        canvases = torch.from_numpy(compose_episode(dataset, longest, few, plan.height, plan.width, plan.composition))
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=plan.bfloat16):
            vae.encode_image(canvases.permute(0, 3, 1, 2).to(device).float() * (2.0 / 255.0) - 1.0).cpu()

    def clip() -> None:
        video = torch.zeros(1, 3, plan.clip_frames, plan.height, plan.width).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=plan.bfloat16):
            vae.encode(video.to(device)).cpu()

    temporaries = max(run_memory(images), run_memory(clip))  # a first call of each, which also warms up
    seconds = timed(images) * num_images / len(few) + timed(clip) * num_windows
    left = 1.0 - done / dataset.num_episodes
    pixels = plan.height * plan.width * 3 * len(steps)
    memory = {
        **before, "VAE": module_bytes(vae),
        "pictures of the longest episode": pixels * 5, "temporaries": temporaries,  # as bytes and as float32
    }  # fmt: skip
    return StepPlan(
        name="latents",
        inputs=inputs,
        outputs=(str(out),),
        work=f"encode {num_images} pictures and {num_windows} clips of {dataset.num_episodes} episodes"
        + (f"; {done} episodes are done" if done else ""),
        duration=Duration(seconds * left, f"{len(few)} pictures and one clip {timed_here()}"),
        memory={"encoding": memory},
        # all of it is taken before the first episode is encoded
        disk={"latents": 0 if done else cache_bytes(header)},
        settled="complete" if done == dataset.num_episodes else "",
    )

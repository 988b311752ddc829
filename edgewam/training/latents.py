"""Cached VAE latents of a dataset, so that a policy never pays for the VAE while it trains.

Two arrays in half precision: the latent of every delivered camera frame as a single image (what planner, router and
history see at run time), and the later latents of a 13-frame clip from every window start (what the planner learns to
predict).  The header ties the cache to the VAE's and the dataset's digests; a cut run goes on with the next episode.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgewam.core.artifacts import write_json
from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.data.dataset import Dataset
from edgewam.models.wan_vae import FRAMES_PER_LATENT, WanVae
from edgewam.training.frames import compose_episode
from edgewam.training.ranks import Ranks, join_ranks, one_voice
from edgewam.training.rows_on_disk import allocate, write_rows

HEADER, DONE = "header.json", "done.json"
_FORMAT = 1
BATCH_IMAGES = 32

_Half = npt.NDArray[np.float16]


@dataclass(frozen=True)
class LatentPlan:
    """What is cached.  Sizes in pixels; strides in control steps: between clip frames, and between window starts.

    `clip_frames` includes the first.  Window starts have a random phase per episode, fixed by `seed`.  With `bfloat16` the
    VAE computes its products in that type: half the time, and latents move by 0.5 % of their standard deviation.
    """

    height: int = 192
    width: int = 160
    clip_frames: int = 13
    clip_stride: int = 8
    start_stride: int = 24
    seed: int = 0
    bfloat16: bool = True
    composition: str = "three_cameras"  # of the cameras on the canvas, by name

    def to_json(self) -> dict[str, Any]:
        """Plain data; the usual composition as before there were others, so that caches stay good."""
        data = vars(self)
        return data if self.composition != "three_cameras" else {k: v for k, v in data.items() if k != "composition"}


@dataclass(frozen=True)
class LatentCache:
    """images [N, C, h, w]; clips [W, C, F, h, w] without the first latent, which is images' own; both float16 memory maps.

    Episode e's frames begin at frame_starts[e]; window w starts at control step window_step[w] of window_episode[w].
    """

    images: npt.NDArray[np.float16]
    clips: npt.NDArray[np.float16]
    frame_starts: npt.NDArray[np.int64]
    window_episode: npt.NDArray[np.int64]
    window_step: npt.NDArray[np.int64]
    hold: int
    plan: LatentPlan

    def image_rows(self, episode: npt.NDArray[np.int64], step: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows of `images` that the cameras showed at control steps (broadcast against episodes)."""
        return self.frame_starts[episode] + step // self.hold


def build_cache(
    out: Path | str,
    dataset: Dataset,
    vae: WanVae,
    vae_digest: str,
    plan: LatentPlan | None = None,
    device: str = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
) -> LatentCache:
    """Encode what is missing in the cache directory `out` and open it.

    Several ranks take episodes in turn, in a directory that they share.

    Args:
        out: directory; made, continued or, when complete, only opened.
        dataset: its frames.
        vae: encodes; its digest (of the artifact it came from) is `vae_digest`.
        vae_digest: identity of the weights.
        plan: what to cache.
        device: where to encode.
        progress: called after every episode with (episodes done, episodes, seconds left).

    Raises:
        ArtifactError: `out` was made from other weights, data or settings.
        EdgewamError: the disk is full.
    """
    out, plan = Path(out), plan or LatentPlan()
    header = cache_header(dataset, vae, vae_digest, plan)
    ranks = join_ranks(device)
    with one_voice(ranks):
        if ranks.is_main:
            out.mkdir(parents=True, exist_ok=True)
            if not (out / HEADER).exists():
                write_json(out / HEADER, header)
        ranks.wait()
        check_header(out, header)
        done = episodes_done(out)
        if done < dataset.num_episodes:
            try:
                _encode(out, dataset, vae.to(device), plan, header, done, device, ranks, progress)
            except OSError as error:
                raise EdgewamError(
                    f"Cannot write latents to '{out}': {error}. The cache needs {cache_bytes(header) / 1e9:.1f} GB; free some "
                    "space and run the same command again: finished episodes are kept."
                ) from error
        return _open(out, dataset, plan, header)


def open_cache(out: Path | str, dataset: Dataset, vae: WanVae, vae_digest: str, plan: LatentPlan | None = None) -> LatentCache:
    """Open a complete cache.

    Raises:
        ArtifactError: it is missing, unfinished or of other weights, data or settings.
    """
    out, plan = Path(out), plan or LatentPlan()
    header = cache_header(dataset, vae, vae_digest, plan)
    check_header(out, header)
    if episodes_done(out) < dataset.num_episodes:
        raise ArtifactError(f"The latent cache '{out}' is unfinished. Run the step that builds it again; it goes on.")
    return _open(out, dataset, plan, header)


def window_starts(dataset: Dataset, plan: LatentPlan) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(episode [W], control step [W]) of every window: each start_stride steps from a random delivered frame on."""
    hold = dataset.fps // dataset.camera_hz
    generator = np.random.default_rng([plan.seed, 11])
    phases = hold * generator.integers(0, max(1, plan.start_stride // hold), dataset.num_episodes)
    # an episode's first frame is always a window: every run starts with an empty memory and that view
    steps = [
        np.unique(np.append(np.arange(phase, length, plan.start_stride), 0))
        for phase, length in zip(phases, dataset.lengths, strict=True)
    ]
    return np.repeat(np.arange(dataset.num_episodes), [len(s) for s in steps]), np.concatenate(steps).astype(np.int64)


def cache_header(dataset: Dataset, vae: WanVae, vae_digest: str, plan: LatentPlan) -> dict[str, Any]:
    """What identifies a cache, and the shapes of its arrays."""
    hold = dataset.fps // dataset.camera_hz
    cell = [vae.config.z_dim, plan.height // 16, plan.width // 16]
    num_images = int(sum(-(-int(length) // hold) for length in dataset.lengths))
    num_later = (plan.clip_frames - 1) // FRAMES_PER_LATENT
    return {
        "format": _FORMAT,
        "vae": vae_digest,
        "dataset": dataset.digest,
        "plan": plan.to_json(),
        "images": [num_images, *cell],
        "clips": [len(window_starts(dataset, plan)[0]), cell[0], num_later, *cell[1:]],
    }


def check_header(out: Path, header: dict[str, Any]) -> None:
    """Raise ArtifactError when `out` is no cache, or one of something else."""
    try:
        found = json.loads((out / HEADER).read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"'{out}' is no latent cache: {error}. Run the step that builds it.") from error
    wanted = json.loads(json.dumps(header))
    if differ := [name for name in wanted if found.get(name) != wanted[name]]:
        raise ArtifactError(
            f"The latent cache '{out}' belongs to another {' and '.join(differ)} than this run. "
            "Use another cache directory or delete it."
        )


def episodes_done(out: Path) -> int:
    """Episodes that a cache directory holds."""
    try:
        return int(json.loads((out / DONE).read_text())["episodes"])
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError) as error:
        raise ArtifactError(f"'{out / DONE}' is damaged: {error}. Delete '{out}' and build it again.") from error


def cache_bytes(header: dict[str, Any]) -> int:
    """Bytes of both arrays."""
    return 2 * int(np.prod(header["images"]) + np.prod(header["clips"]))


def _file(out: Path, name: str) -> Path:
    return out / f"{name}.f16"


def _map(out: Path, name: str, shape: list[int]) -> npt.NDArray[np.float16]:
    path = _file(out, name)
    if not path.exists() or path.stat().st_size != 2 * int(np.prod(shape)):
        raise ArtifactError(f"'{path}' is missing or truncated. Delete '{out}' and build it again.")
    return np.memmap(path, np.float16, "r", shape=tuple(shape))


def _open(out: Path, dataset: Dataset, plan: LatentPlan, header: dict[str, Any]) -> LatentCache:
    hold = dataset.fps // dataset.camera_hz
    counts = -(-dataset.lengths // hold)
    episode, step = window_starts(dataset, plan)
    frame_starts = np.cumsum(counts) - counts
    images, clips = (_map(out, name, header[name]) for name in ("images", "clips"))
    return LatentCache(images, clips, frame_starts, episode, step, hold, plan)


def _encode(
    out: Path,
    dataset: Dataset,
    vae: WanVae,
    plan: LatentPlan,
    header: dict[str, Any],
    done: int,
    device: str,
    ranks: Ranks,
    progress: Callable[[int, int, float], None] | None,
) -> None:
    """In rounds of an episode per rank, each episode by one thread: a small VAE's layers are too small to share among threads.

    A rank works ahead of its round.
    """
    hold = dataset.fps // dataset.camera_hz
    images, clips = (_file(out, name) for name in ("images", "clips"))
    if ranks.is_main:
        for name in ("images", "clips"):
            allocate(_file(out, name), 2 * int(np.prod(header[name])), has_rows=done > 0)
    ranks.wait()
    episode_of, step_of = window_starts(dataset, plan)
    frame_starts = np.cumsum(-(-dataset.lengths // hold)) - -(-dataset.lengths // hold)
    windows = [np.flatnonzero(episode_of == episode) for episode in range(dataset.num_episodes)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.monotonic()
    try:
        with ThreadPoolExecutor(threads if torch.device(device).type == "cpu" else 1) as pool:
            waiting: deque[Future[tuple[_Half, _Half]]] = deque()
            for first in range(done, dataset.num_episodes, ranks.world):
                episode, end = first + ranks.share.rank, min(first + ranks.world, dataset.num_episodes)
                while len(waiting) <= threads and (following := episode + len(waiting) * ranks.world) < dataset.num_episodes:
                    starts = step_of[windows[following]]
                    waiting.append(pool.submit(_encode_episode, dataset, following, starts, vae, plan, device))
                if episode < end:
                    found, later = waiting.popleft().result()
                    write_rows(images, {int(frame_starts[episode]): found})
                    write_rows(clips, {int(windows[episode][0]): later})
                ranks.wait()
                if ranks.is_main:
                    write_json(out / DONE, {"episodes": end})
                    if progress is not None:
                        each = (time.monotonic() - began) / (end - done)
                        progress(end, dataset.num_episodes, each * (dataset.num_episodes - end))
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def _encode_episode(
    dataset: Dataset, episode: int, starts: npt.NDArray[np.int64], vae: WanVae, plan: LatentPlan, device: str
) -> tuple[_Half, _Half]:
    """Latents [n, C, h, w] of an episode's delivered frames, and [W, C, F, h, w] of the clips that begin at `starts`."""
    hold = dataset.fps // dataset.camera_hz
    steps = np.arange(0, dataset.lengths[episode], hold, dtype=np.int64)
    pixels = torch.from_numpy(compose_episode(dataset, episode, steps, plan.height, plan.width, plan.composition))
    frames = pixels.permute(0, 3, 1, 2).to(device).float() * (2.0 / 255.0) - 1.0  # channels-last: four times faster on a CPU
    later = []
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=plan.bfloat16):
        found = _half(torch.cat([vae.encode_image(part) for part in frames.split(BATCH_IMAGES)]))
        for start in starts:
            rows = np.minimum((start + plan.clip_stride * np.arange(plan.clip_frames)) // hold, len(steps) - 1)
            clip = frames[rows].transpose(0, 1)[None].contiguous(memory_format=torch.channels_last_3d)
            later.append(_half(vae.encode(clip)[0, :, 1:]))
    return found, np.stack(later)


def _half(latent: Tensor) -> _Half:
    assert latent.isfinite().all() and latent.abs().max() < 6e4, "latent out of half precision"
    found: _Half = latent.cpu().to(torch.float16).numpy()
    return found

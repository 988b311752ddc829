"""Loss batches made of camera frames: decoded ahead by worker processes, encoded by the frozen VAE when they are needed.

The full-size sibling of `training/windows.WindowSource`, with the same three methods.  Batches follow the epochs of a
`WindowSampler`: a batch is a function of its number alone, so a run goes on anywhere and on any number of ranks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from edgewam.core.errors import ContractError
from edgewam.data.frame_windows import Canvas, FrameBatch, FrameLoader, FrameReader, Pixels
from edgewam.data.sampler import WindowSampler
from edgewam.data.stats import DatasetStats
from edgewam.data.windows import WindowBatch, WindowLayout
from edgewam.models.flow_loss import LossBatch
from edgewam.models.text import TextEncoder
from edgewam.models.wan_vae import WanVae

IMAGES_AT_ONCE = 8  # single images encoded together; at 384x320 each layer's activations stay below 100 MB in bfloat16
PIXELS: dict[torch.dtype, Pixels] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class FrameChoice:
    """Rows `first` to `last` (exclusive) of batch number `index`.

    in_order: the batch after it will probably be asked for next; else nobody knows.
    """

    index: int
    first: int
    last: int
    in_order: bool = False

    def following(self) -> Iterator[FrameChoice]:
        """The same rows of this batch and of those that will probably be asked for after it."""
        numbers = itertools.count(self.index) if self.in_order else [self.index]
        return (replace(self, index=number) for number in numbers)

    def __len__(self) -> int:
        """Number of windows."""
        return self.last - self.first

    def rows(self, first: int, last: int) -> FrameChoice:
        """Some of these rows: what one rank takes of a choice that all ranks draw alike."""
        assert 0 <= first < last <= len(self), "rows of a choice"
        return replace(self, first=self.first + first, last=self.first + last)


@dataclass
class FrameSource:
    """Draws by number, decodes ahead, encodes on the VAE's device.

    canvas: the road the pictures take; `canvas_for` gives the released one.  chunk_images: whether the family looks at an
    image per chunk (else chunk_latents has none).  num_workers, prefetch: see `FrameLoader`.
    """

    sampler: WindowSampler
    canvas: Canvas
    vae: WanVae
    stats: DatasetStats
    text: TextEncoder
    chunk_images: bool = True
    num_workers: int = 0
    prefetch: int = 2

    def __post_init__(self) -> None:
        self.vae = self.vae.eval().requires_grad_(False)
        dataset = self.sampler.dataset
        # all of them now: an instruction without an embedding must not stop a run after a day
        self._words = {task: _Rows.of(self.text.encode(task)) for task in self.sampler.tasks}
        pin = self._device.type == "cuda"
        self._loader = FrameLoader(FrameReader(dataset, self.canvas), self.num_workers, self.prefetch, pin)
        self._expected: FrameChoice | None = None
        self._stream: Iterator[FrameBatch] = iter(())

    @property
    def layout(self) -> WindowLayout:
        """Of its windows."""
        return self.sampler.layout

    @property
    def num_windows(self) -> int:
        """Windows to draw from."""
        return self.sampler.num_windows

    def draw(self, size: int, generator: np.random.Generator, index: int | None = None) -> FrameChoice:
        """`size` rows of batch number `index`; without a number, of one of the first epoch drawn from `generator`.

        Raises:
            ContractError: the sampler's batches are smaller.
        """
        if size > self.sampler.batch_size:
            raise ContractError(f"The sampler makes batches of {self.sampler.batch_size} windows; {size} were asked for.")
        if index is None:
            return FrameChoice(int(generator.integers(self.sampler.num_batches(0))), 0, size)
        return FrameChoice(index, 0, size, in_order=True)

    def batch(self, choice: FrameChoice) -> LossBatch:
        """Latents on the VAE's device; normalised actions and states, text and ids on the CPU.

        Floats are float32, in which a bfloat16 VAE's values are exact: noise and timesteps are drawn in it.

        Raises:
            EdgewamError: a video is missing or damaged (it is named), or a loading process was killed.
        """
        if choice != self._expected:
            self._stream = self._loader.stream(self._windows(each) for each in choice.following())
        self._expected = None  # after an error the stream is not to be trusted
        frames = next(self._stream)
        self._expected = next(itertools.islice(choice.following(), 1, None), None)
        return self._encode(frames)

    def describe(self, choice: FrameChoice) -> str:
        """Place in the order; episode, start and offset of the first windows."""
        epoch, position = self.sampler.place(choice.index)
        windows = self._windows(choice.rows(0, min(4, len(choice))))
        places = zip(windows.episode, windows.start, windows.offset, strict=True)
        text = ", ".join(f"episode {episode} step {step} offset {offset}" for episode, step, offset in places)
        return f"epoch {epoch} position {position}: {text}" + (", ..." if len(choice) > 4 else "")

    @property
    def _device(self) -> torch.device:
        return self.vae.latent_mean.device

    def _windows(self, choice: FrameChoice) -> WindowBatch:
        epoch, position = self.sampler.place(choice.index)
        return self.sampler.global_batch(epoch, position, slice(choice.first, choice.last))

    def _encode(self, frames: FrameBatch) -> LossBatch:
        windows, num_history = frames.windows, frames.windows.valid_len
        history_ids = windows.history_temporal_ids[:, windows.history_temporal_ids.shape[1] - num_history :]
        chunks = frames.chunks if self.chunk_images else frames.chunks[:, :0]
        video, (history, chunk_images) = encode_frames(self.vae, frames.canvases, frames.clip, (frames.history, chunks))
        dataset = self.sampler.dataset
        return LossBatch(
            actions=torch.from_numpy(self.stats.action.forward(windows.actions)),
            action_is_pad=torch.from_numpy(windows.action_is_pad),
            proprio=torch.from_numpy(self.stats.state.forward(windows.proprio)),
            context=torch.stack([self._words[dataset.task(int(episode))].full() for episode in windows.episode]),
            video_latents=video.float(),
            image_is_pad=torch.from_numpy(windows.image_is_pad),
            video_frame_ids=torch.from_numpy(windows.video_temporal_ids),
            history_latents=history.float(),
            history_frame_ids=torch.from_numpy(history_ids),
            history_valid_len=torch.full((len(windows.start),), num_history),
            chunk_latents=chunk_images.float(),
        )


def canvas_for(vae: WanVae, height: int, width: int, composition: str = "three_cameras") -> Canvas:
    """The released training road for a VAE: pixels reach it in its own type.

    Raises:
        ContractError: a VAE of another type than float32 and bfloat16.
    """
    dtype = vae.conv1.weight.dtype
    if dtype not in PIXELS:
        raise ContractError(
            f"Frames are encoded in float32 or bfloat16, not in {dtype}. Convert the VAE with .to(torch.bfloat16)."
        )
    return Canvas(height, width, PIXELS[dtype], composition=composition)


@torch.no_grad()
def encode_frames(
    vae: WanVae, canvases: Tensor, clip: np.ndarray, images: tuple[np.ndarray, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Latents of a batch's canvases [N, 3, H, W], in the VAE's dtype and on its device, whatever autocast is on around it.

    clip: rows [B, F] of causal videos -> [B, C, 1 + (F-1)/4, h, w].  images: several [B, n] of single images, each
    -> [B, n, C, h, w]; every canvas is encoded once.
    """
    device, dtype = vae.latent_mean.device, vae.conv1.weight.dtype
    with torch.autocast(device.type, enabled=False):
        pixels = canvases.to(device, non_blocking=True)
        byte = pixels.dtype == torch.uint8
        pixels = pixels.to(dtype, memory_format=torch.channels_last)  # the fast layout for convolutions, on CPUs four times
        if byte:  # as at run time, where the product is in the model's type too
            pixels = pixels * (2.0 / 255.0) - 1.0
        # one by one, as the released training does: a row's latent does not depend on who shares its batch
        video = torch.cat([vae.encode(_clip(pixels[torch.from_numpy(rows)])) for rows in clip])
        used, places = np.unique(np.concatenate([rows.reshape(-1) for rows in images]), return_inverse=True)
        single = video.new_empty(len(used), video.shape[1], *video.shape[3:])
        for begin in range(0, len(used), IMAGES_AT_ONCE):
            some = slice(begin, begin + IMAGES_AT_ONCE)
            single[some] = vae.encode_image(pixels[torch.from_numpy(used[some])])
    ends = np.cumsum([rows.size for rows in images])[:-1]
    found = [torch.from_numpy(part.reshape(rows.shape)) for part, rows in zip(np.split(places, ends), images, strict=True)]
    return video, tuple(single[rows.to(device)] for rows in found)


def _clip(frames: Tensor) -> Tensor:
    """Frames [F, 3, H, W] -> one video [1, 3, F, H, W]."""
    return frames.transpose(0, 1)[None].contiguous(memory_format=torch.channels_last_3d)


@dataclass(frozen=True)
class _Rows:
    """Text rows without their zero tail, in bfloat16 where that loses nothing: a tenth of the memory for thousands of tasks."""

    words: Tensor
    text_len: int

    @staticmethod
    def of(rows: np.ndarray) -> _Rows:
        used = np.flatnonzero(rows.any(1))
        words = torch.from_numpy(rows[: used[-1] + 1 if len(used) else 0].copy())
        half = words.bfloat16()
        return _Rows(half if torch.equal(half.float(), words) else words, len(rows))

    def full(self) -> Tensor:
        """float32 [text_len, text_dim]."""
        found = torch.zeros(self.text_len, self.words.shape[1])
        found[: len(self.words)] = self.words
        return found

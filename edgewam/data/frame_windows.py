"""Batches of training windows with their pictures: decoded, composed and prefetched by worker processes.

For data whose latents would not fit on a disk.  A canvas that several places of a batch show (a clip, its chunk images,
history, the repeats of a slow camera) is decoded and stored once.  Encoding them is `training/frame_source`'s part.
"""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgewam.core.errors import EdgewamError, require
from edgewam.core.observation import compose_images, composition_named
from edgewam.data.compose import compose_training
from edgewam.data.dataset import Dataset
from edgewam.data.windows import Ints, WindowBatch

if TYPE_CHECKING:
    from torch import Tensor

Pixels = Literal["float32", "bfloat16", "uint8"]

FRAMES_AT_ONCE = 8  # composed together: bounds the float32 copies of the cameras (11 MB a frame at 3 x 480x640)


@dataclass(frozen=True)
class FrameBatch:
    """Windows and what their cameras showed: N distinct canvases [N, 3, H, W], and for each place the row that shows it.

    Canvases are RGB in [-1, 1] (float32 or bfloat16), or bytes 0..255 (uint8).  History holds the `valid_len` frames that
    exist, oldest first.
    """

    windows: WindowBatch
    canvases: Tensor
    clip: Ints  # [B, F]
    history: Ints  # [B, valid_len]
    chunks: Ints  # [B, K]

    def pin_memory(self) -> FrameBatch:
        """The same batch in memory that a GPU reads while the CPU goes on (called by torch's DataLoader)."""
        return replace(self, canvases=self.canvases.pin_memory())


@dataclass(frozen=True)
class Canvas:
    """How a canvas is made of the cameras, in pixels.

    pixels: "float32" is released training's road to the VAE, antialiased and never rounded to bytes; "bfloat16" is the same
    rounded once, which for a VAE of that type changes nothing and halves the memory (by way of float16, 6 % of the values would
    end up elsewhere, by way of bytes 73 %); "uint8" is the run-time road (PIL).
    camera_size: what the training road first resizes every camera to, None: nothing.  composition: see `COMPOSITIONS`.
    """

    height: int
    width: int
    pixels: Pixels = "float32"
    camera_size: tuple[int, int] | Literal["released"] | None = "released"
    composition: str = "three_cameras"

    @property
    def num_bytes(self) -> int:
        """Of one canvas."""
        return 3 * self.height * self.width * {"float32": 4, "bfloat16": 2, "uint8": 1}[self.pixels]


@dataclass(frozen=True)
class FrameReader:
    """Windows -> their pictures.  It is what a worker process holds."""

    dataset: Dataset
    canvas: Canvas

    def read(self, windows: WindowBatch) -> FrameBatch:
        """Decode and compose.

        Raises:
            ArtifactError: a video is missing or damaged; it is named.
            ContractError: a camera of the canvas is missing.
        """
        torch = require("torch", extra="train")
        first_history = windows.history_steps.shape[1] - windows.valid_len
        parts = [windows.video_steps, windows.history_steps[:, first_history:], windows.chunk_steps]
        steps = self.dataset.camera_frame(np.concatenate(parts, 1))
        places = np.stack([np.broadcast_to(windows.episode[:, None], steps.shape), steps], -1).reshape(-1, 2)
        # distinct frames, by episode and then in time: each video is read forwards, once
        distinct, rows = np.unique(places, axis=0, return_inverse=True)
        episodes, counts = np.unique(distinct[:, 0], return_counts=True)
        canvas = self.canvas
        canvases = torch.empty(len(distinct), 3, canvas.height, canvas.width, dtype=getattr(torch, canvas.pixels))
        for episode, part, target in zip(
            episodes, np.split(distinct[:, 1], np.cumsum(counts)[:-1]), canvases.split(counts.tolist()), strict=True
        ):
            self._fill(target, int(episode), part)
        clip, history, chunks = np.split(rows.reshape(steps.shape), np.cumsum([part.shape[1] for part in parts])[:-1], 1)
        return FrameBatch(windows, canvases, clip, history, chunks)

    def __getitem__(self, windows: WindowBatch) -> FrameBatch | EdgewamError:
        """What DataLoader calls.  The user's errors travel as values: raised, they would arrive wrapped in a traceback."""
        try:
            return self.read(windows)
        except EdgewamError as error:
            return error

    def _fill(self, target: Tensor, episode: int, steps: Ints) -> None:
        torch = require("torch", extra="train")
        canvas = self.canvas
        cameras = composition_named(canvas.composition).chosen(self.dataset.cameras).values()
        views = {camera: self.dataset.frames(episode, camera, steps) for camera in cameras}
        for begin in range(0, len(steps), FRAMES_AT_ONCE):
            some = slice(begin, begin + FRAMES_AT_ONCE)
            if canvas.pixels == "uint8":
                each = [{name: view[i] for name, view in views.items()} for i in range(len(steps))[some]]
                shown = [compose_images(images, canvas.height, canvas.width, canvas.composition) for images in each]
                target[some] = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)
            else:
                images = {name: torch.from_numpy(view[some]).permute(0, 3, 1, 2) for name, view in views.items()}
                target[some] = compose_training(images, canvas.height, canvas.width, canvas.camera_size, canvas.composition)


class FrameLoader:
    """Frame batches of a sequence of windows, read ahead by worker processes that stay alive from one sequence to the next.

    num_workers: 0 reads in this process, when asked.  prefetch: batches that each worker has ready or in work; they wait in
    shared memory (/dev/shm), one of six released windows is up to 66 MB in bfloat16.  pin: for a GPU; needs one.  What comes
    does not depend on these three.
    """

    def __init__(self, reader: FrameReader, num_workers: int = 0, prefetch: int = 2, pin: bool = False) -> None:
        # workers only look at videos: numbers of all episodes may be gigabytes, and every worker would get a copy
        lean = replace(reader.dataset, index=replace(reader.dataset.index, vectors={}))
        self._reader, self._order = replace(reader, dataset=lean), _Order()
        self._loader: Any = None
        self._options: dict[str, Any] = {"num_workers": num_workers, "pin_memory": pin}
        if num_workers:
            # a forked child of a process that uses CUDA and threads may hang
            options = {"multiprocessing_context": "spawn", "worker_init_fn": _start_worker, "persistent_workers": True}
            self._options |= {**options, "prefetch_factor": prefetch}

    def stream(self, windows: Iterable[WindowBatch]) -> Iterator[FrameBatch]:
        """The batches of `windows` in their order.  A stream ends the one before it, whose batches in work are dropped.

        Raises:
            EdgewamError: what `FrameReader.read` refuses, when its turn comes, or a worker process was killed.
        """
        try:
            batches = self._begin(windows)
            while (batch := next(batches, None)) is not None:
                if isinstance(batch, EdgewamError):
                    raise batch
                yield batch
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            self._rest.detach()
            self._loader = None  # it would wait for the dead; the next stream starts a new one
            raise EdgewamError(
                f"A process that loads frames was killed ({error}). Mostly memory ran out: use fewer workers or a smaller "
                "prefetch, or give /dev/shm more room, and run again."
            ) from error

    def _begin(self, windows: Iterable[WindowBatch]) -> Iterator[FrameBatch | EdgewamError]:
        torch = require("torch", extra="train")
        if self._loader is None:
            loader = require("torch.utils.data", extra="train").DataLoader
            # without a generator of its own every start would take a number from the global one
            self._loader = loader(
                self._reader, batch_size=None, sampler=self._order, generator=torch.Generator(), **self._options
            )
            self._rest = weakref.finalize(self, _let_rest, self._loader, self._order)
        self._order.windows = windows
        before = signal.getsignal(signal.SIGCHLD)
        batches: Iterator[FrameBatch | EdgewamError] = iter(self._loader)
        if threading.current_thread() is threading.main_thread() and before is not None:
            # DataLoader's own handler would raise in the middle of a training step; it also looks when it is asked
            signal.signal(signal.SIGCHLD, before)
        return batches


class _Order:
    """What DataLoader takes for a sampler: the windows of the stream that was asked for last."""

    windows: Iterable[WindowBatch] = ()

    def __iter__(self) -> Iterator[WindowBatch]:
        return iter(self.windows)


def _let_rest(loader: Any, order: _Order) -> None:
    """Have the workers finish what they do: one that ends while it sends a batch aborts, with a message of the C++ runtime."""
    if loader.num_workers:
        order.windows = ()
        with suppress(RuntimeError):  # a worker was killed and nobody asked since
            iter(loader)


def _start_worker(worker: int) -> None:
    # Ctrl-C and torchrun's SIGTERM reach a training's whole process group, but it still wants the batches of the step that it
    # finishes before it writes its checkpoint: a group of its own.  DataLoader ends its workers one by one.
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)

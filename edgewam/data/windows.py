"""Training windows as indices: which frames, states and actions one sample of AHA-WAM training is made of.

A window starts at control step t of an episode.  The planner sees the frame at t, its history and the clip that follows;
the executor acts `offset` steps later (facts/aha_wam.md 6).  NumPy only: images or cached latents are looked up by index.

Legend: B windows, F video frames, J latents, A actions, K chunks, M history frames, D joints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import ContractError
from edgewam.data.dataset import Dataset
from edgewam.data.schema import ACTION, STATE, Floats

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

FRAMES_PER_LATENT = 4  # the causal VAE: 1 + 4k frames -> 1 + k latents


@dataclass(frozen=True)
class WindowLayout:
    """Sizes of a window, in control steps.  The defaults are the offset-trained form with 97 steps.

    stride: steps between clip frames and per temporal id.  history_spacings: candidates for the steps between history
    frames, one is drawn per sample.
    """

    chunk: int = 16
    horizon: int = 80
    stride: int = 8
    max_offset: int = 15
    num_video_frames: int = 13
    num_history: int = 6
    history_spacings: tuple[int, ...] = (32, 64)

    def __post_init__(self) -> None:
        if self.horizon % self.chunk or (self.num_video_frames - 1) % FRAMES_PER_LATENT:
            raise ContractError(
                f"horizon ({self.horizon}) must be a multiple of chunk ({self.chunk}) and num_video_frames "
                f"({self.num_video_frames}) one more than a multiple of {FRAMES_PER_LATENT}."
            )
        if self.max_offset < 0 or self.max_offset + self.horizon >= self.num_steps:
            raise ContractError(f"max_offset + horizon must lie within the clip of {self.num_steps - 1} steps.")
        if self.num_history and not self.history_spacings:
            raise ContractError("A layout with history needs at least one history spacing.")

    @property
    def num_steps(self) -> int:
        """Control steps that the clip spans, both ends included."""
        return (self.num_video_frames - 1) * self.stride + 1

    @property
    def num_chunks(self) -> int:
        """Chunks in the horizon."""
        return self.horizon // self.chunk

    @property
    def num_latents(self) -> int:
        """Latent frames of the clip."""
        return 1 + (self.num_video_frames - 1) // FRAMES_PER_LATENT


def released_layout() -> WindowLayout:
    """AHA-WAM's released weights: 65 steps, 4 chunks, no offset, history at the planner's horizon."""
    return WindowLayout(horizon=64, max_offset=0, num_video_frames=9, history_spacings=(64,))


def offset_layout() -> WindowLayout:
    """AHA-WAM's offset training: 97 steps, 5 chunks that begin up to 15 steps late, history at the planner's horizon."""
    return WindowLayout(horizon=80, max_offset=15, num_video_frames=13, history_spacings=(96,))


def fast_wam_layout() -> WindowLayout:
    """Fast-WAM's, for RoboTwin and LIBERO alike: 33 steps, a frame every 4, one chunk of 32, no history (facts/aha_wam.md 9)."""
    return WindowLayout(chunk=32, horizon=32, stride=4, max_offset=0, num_video_frames=9, num_history=0, history_spacings=())


def libero_layout() -> WindowLayout:
    """Fast-WAM's on LIBERO: the same sizes as its RoboTwin form."""
    return fast_wam_layout()


@dataclass(frozen=True)
class WindowBatch:
    """B windows.  Every `*_steps` is an episode-relative control step, clamped to the episode where `*_is_pad` says so.

    actions [B, A, D] and proprio [B, K, D] are in robot units, not normalised.  Padded history entries are 0 and come
    first: the last `valid_len` (one number for the batch) are real, oldest first.
    """

    episode: Ints  # [B]
    start: Ints  # [B] the planner's frame
    offset: Ints  # [B] age of the planner's frame when the first action is executed
    video_steps: Ints  # [B, F]
    image_is_pad: Bools  # [B, F]
    video_temporal_ids: Ints  # [B, J]
    action_steps: Ints  # [B, A]
    action_is_pad: Bools  # [B, A]
    actions: Floats  # [B, A, D]
    chunk_steps: Ints  # [B, K] observation frame and proprio of each chunk
    proprio: Floats  # [B, K, D]
    history_steps: Ints  # [B, M]
    history_temporal_ids: Ints  # [B, M]
    history_spacing: Ints  # [B]
    valid_len: int

    @property
    def latent_steps(self) -> Ints:
        """Step of the first frame of each latent [B, J]; column 0 is the planner's frame itself."""
        return self.video_steps[:, ::FRAMES_PER_LATENT]

    @property
    def latent_is_pad(self) -> Bools:
        """Latents [B, J] all of whose frames are padding; the first one has a single frame."""
        rest = self.image_is_pad[:, 1:].reshape(len(self.start), -1, FRAMES_PER_LATENT).all(2)
        return np.concatenate([self.image_is_pad[:, :1], rest], 1)


def num_valid_history(layout: WindowLayout, start: Ints, spacing: Ints) -> Ints:
    """How many history frames exist before `start`, at most `num_history`: int64, shape of `start`."""
    valid: Ints = np.minimum(layout.num_history, start // spacing)
    return valid


def make_windows(dataset: Dataset, layout: WindowLayout, episode: Ints, start: Ints, offset: Ints, spacing: Ints) -> WindowBatch:
    """Build windows from int64 [B] choices.

    Raises:
        ContractError: a start outside its episode, an offset outside 0..max_offset, or windows of unequal history length.
    """
    last = dataset.lengths[episode] - 1
    if (start < 0).any() or (start > last).any() or (offset < 0).any() or (offset > layout.max_offset).any():
        raise ContractError(f"Window starts must lie inside their episode and offsets in 0..{layout.max_offset}.")
    valid = num_valid_history(layout, start, spacing)
    if (valid != valid[0]).any():
        raise ContractError(f"The windows of a batch must have one history length, got {sorted(set(valid.tolist()))}.")

    video = start[:, None] + np.arange(layout.num_video_frames) * layout.stride
    action = (start + offset)[:, None] + np.arange(layout.horizon)
    chunk = (start + offset)[:, None] + np.arange(layout.num_chunks) * layout.chunk
    ages = np.arange(layout.num_history, 0, -1)
    history = np.where(ages <= valid[:, None], start[:, None] - ages * spacing[:, None], 0)
    limit = last[:, None]
    action_steps, chunk_steps = np.minimum(action, limit), np.minimum(chunk, limit)
    first_row = dataset.index.starts[episode][:, None]
    return WindowBatch(
        episode=episode,
        start=start,
        offset=offset,
        video_steps=np.minimum(video, limit),
        image_is_pad=video > limit,
        # ids follow the clock, also where the picture repeats the episode's last one
        video_temporal_ids=video[:, ::FRAMES_PER_LATENT] // layout.stride,
        action_steps=action_steps,
        action_is_pad=action > limit,
        actions=dataset.index.vectors[ACTION][first_row + action_steps],
        chunk_steps=chunk_steps,
        proprio=dataset.index.vectors[STATE][first_row + chunk_steps],
        history_steps=history,
        history_temporal_ids=history // layout.stride,
        history_spacing=spacing,
        valid_len=int(valid[0]),
    )

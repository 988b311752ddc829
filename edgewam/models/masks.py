"""Who may attend to whom, as boolean masks (True = attend) and as additive biases."""

from __future__ import annotations

import torch
from torch import Tensor


def frame_causal(num_frames: int, frame_tokens: int) -> Tensor:
    """Tokens see their own and earlier frames: [F*tokens, F*tokens] bool."""
    frame = torch.arange(num_frames).repeat_interleave(frame_tokens)
    return frame[:, None] >= frame[None, :]


def first_frame_causal(num_frames: int, frame_tokens: int) -> Tensor:
    """Tokens of frame 0 see frame 0 only, all others see every frame: [F*tokens, F*tokens] bool."""
    is_first = torch.arange(num_frames * frame_tokens) < frame_tokens
    return ~is_first[:, None] | is_first[None, :]


def joint_first_frame(num_frames: int, frame_tokens: int, horizon: int) -> Tensor:
    """`first_frame_causal` video followed by actions, which see frame 0 and each other: [F*tokens + horizon] squared, bool."""
    video, size = num_frames * frame_tokens, num_frames * frame_tokens + horizon
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[:video, :video] = first_frame_causal(num_frames, frame_tokens)
    mask[video:, :frame_tokens] = mask[video:, video:] = True
    return mask


def history_frames(valid_len: Tensor, num_frames: int) -> Tensor:
    """Frame mask [B, M, M] bool of right-aligned history: causal among the last valid_len [B] of M frames."""
    index = torch.arange(num_frames, device=valid_len.device)
    valid = index >= num_frames - valid_len[:, None]
    return valid[:, :, None] & valid[:, None, :] & (index[:, None] >= index[None, :])


def chunk_cross_attention(num_chunks: int, chunk_size: int, text_len: int) -> Tensor:
    """Action rows see all text tokens and their own chunk's proprio token: [chunks*size, text_len + chunks] bool."""
    chunk = torch.arange(num_chunks).repeat_interleave(chunk_size)
    own = chunk[:, None] == torch.arange(num_chunks)[None, :]
    return torch.cat([torch.ones(len(chunk), text_len, dtype=torch.bool), own], dim=1)


def bias_of(mask: Tensor) -> Tensor:
    """Additive float32 bias: 0 where attended, -inf elsewhere; rows without any key see every key.

    Such rows belong to padding that nobody reads; without this their softmax would be NaN and poison gradients.
    """
    empty = ~mask.any(dim=-1, keepdim=True)
    return torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_fill(~(mask | empty), float("-inf"))

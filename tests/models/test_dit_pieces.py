"""Rotary tables, masks, the sinusoid and attention agree with golden arrays and with textbook forms."""

import re

import pytest
import torch
import torch.nn.functional as F

from edgewam.models import masks
from edgewam.models.dit_block import RmsNorm, add_gated, attend, modulate
from edgewam.models.rope import axis_angles, rope, rotate
from edgewam.models.wan_dit import VideoDit, sinusoid
from tests.models import aha_wam_golden as golden

CLOSE = {"atol": golden.STAGE_ATOL, "rtol": 0}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_action_rope_and_sinusoid_equal_the_golden_ones():
    data, config = golden.arrays("masks_rope"), golden.config()
    angles = axis_angles(torch.arange(config.horizon), config.head_dim, config.rope_theta)
    torch.testing.assert_close(angles.cos(), data["action.rope_cos_f64"], atol=1e-12, rtol=0)
    torch.testing.assert_close(angles.sin(), data["action.rope_sin_f64"], atol=1e-12, rtol=0)
    embedded = {key: re.fullmatch(r"action\.timestep_embedding_input_([\d.]+)", key) for key in data}
    times = {key: float(found[1]) for key, found in embedded.items() if found}
    assert golden.release_json()["golden_sizes"]["velocity_timestep"] in times.values()
    for key, time in times.items():
        torch.testing.assert_close(sinusoid(torch.tensor([time]), config.freq_dim), data[key], **CLOSE)


def test_masks_equal_the_golden_ones():
    data, config = golden.arrays("masks_rope"), golden.config()
    for num_frames in golden.indices("masks_rope", r"video\.per_frame_causal_(\d+)frames"):
        causal = data[f"video.per_frame_causal_{num_frames}frames"]
        assert torch.equal(masks.frame_causal(num_frames, config.frame_tokens), causal.bool())
    cross = data["action.cross_attention_training"].bool()
    assert torch.equal(masks.chunk_cross_attention(config.num_chunks, config.chunk_size, config.text_len), cross)
    frames = data["history.frame_mask_valid_last"].bool()
    valid = frames.diagonal(dim1=1, dim2=2).sum(1)
    assert torch.equal(masks.history_frames(valid, frames.shape[1]), frames)


def test_a_bias_never_leaves_a_row_without_keys():
    bias = masks.bias_of(torch.tensor([[True, False], [False, False]]))
    assert bias.tolist() == [[0.0, float("-inf")], [0.0, 0.0]]


def test_rotation_is_a_rotation_of_interleaved_pairs():
    x, table = randn(2, 5, 3, 8), rope(axis_angles(torch.arange(5), 8, 10000.0))
    out = rotate(x, table)
    pairs = torch.view_as_complex(x.unflatten(-1, (4, 2)).contiguous())
    turned = pairs * torch.polar(torch.ones(5, 4), axis_angles(torch.arange(5), 8, 10000.0).float())[:, None]
    torch.testing.assert_close(out, torch.view_as_real(turned).flatten(-2))


def test_logits_depend_on_the_difference_of_positions_only():
    q, k = randn(1, 1, 1, 8), randn(1, 1, 1, 8, seed=1)

    def logit(i, j):
        turn = lambda x, p: rotate(x, rope(axis_angles(torch.tensor([p]), 8, 10000.0)))  # noqa: E731
        return (turn(q, i) * turn(k, j)).sum()

    torch.testing.assert_close(logit(3, 1), logit(50_003, 50_001), atol=1e-5, rtol=0)


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_equals_the_fused_one(heads):
    q, k, v, bias = randn(2, 5, 12), randn(2, 7, 12, seed=1), randn(2, 7, 12, seed=2), randn(2, 1, 5, 7, seed=3)
    split = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    expected = F.scaled_dot_product_attention(*split, attn_mask=bias.expand(2, heads, 5, 7)).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(attend(q, k, v, heads, bias), expected)


def test_rms_norm_is_joint_over_all_heads_and_scaled_last():
    norm, x = RmsNorm(6), randn(2, 6)
    torch.nn.init.uniform_(norm.weight)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (6,), norm.weight, eps=1e-6))


def test_grouped_modulation_equals_the_per_token_one():
    x, update, shift, scale = (randn(2, 6, 4, seed=i) for i in range(4))
    grouped = [m[:, ::3] for m in (shift, scale)]  # two groups of three tokens
    wide = [m.repeat_interleave(3, 1) for m in grouped]
    torch.testing.assert_close(modulate(x, *grouped), modulate(x, *wide))
    torch.testing.assert_close(add_gated(x, update, grouped[0]), x + update * wide[0])


def test_patches_equal_the_convolution_and_unpatchify_is_its_layout_s_inverse():
    config = golden.config()
    planner: VideoDit = golden.model().planner
    latents = randn(2, config.latent_dim, 2, config.latent_height, config.latent_width)
    torch.testing.assert_close(planner.patchify(latents), planner.patch_embedding(latents).flatten(2).transpose(1, 2), **CLOSE)
    b, c, f, h, w = latents.shape
    tokens = latents.reshape(b, c, f, h // 2, 2, w // 2, 2).permute(0, 2, 3, 5, 4, 6, 1).reshape(b, -1, 4 * c)
    assert torch.equal(planner.unpatchify(tokens, latents.shape), latents)

"""The released computation: golden actions from images, and the operations that it was counted to need at full size."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.upstream import UpstreamEager
from edgewam.models.aha_wam import AhaWam, full
from edgewam.models.wan_vae import WanVae
from tests.models import aha_wam_golden as golden

torch.set_num_threads(1)
BF16_ATOL = 0.25  # two bf16 runs of ten evaluations differ by rounding (0.125 seen); a float32 run is off by 0.5 to 1.5
BF16_CONTEXT = 0.05  # relative, between two bf16 runs with independent rounding; 0.025 seen
COUNTED_GFLOP = {"vae": 571.2, "prefill_cold": 1219.6, "prefill": 1251.5, "observation": 67.0, "editor": 230.8, "denoise": 77.8}


def golden_policy() -> UpstreamEager:
    return UpstreamEager(golden.model(), golden.read_vae())  # its own copy: the policy changes the convolutions


def test_actions_from_images_are_the_golden_ones():
    refreshes, samples = golden.arrays("prefill_memory"), golden.arrays("sampler_streaming")
    policy, chunk_size = golden_policy(), golden.config().chunk_size
    for i in golden.indices("prefill_memory", r"refresh(\d+)\.image_u8"):
        frame_id = int(refreshes[f"refresh{i}.frame_index"])
        policy.refresh(refreshes[f"refresh{i}.image_u8"][0], refreshes["text.context"], frame_id)
        for ours, theirs in zip(policy.context, golden.layers("prefill_memory", f"refresh{i}"), strict=True):
            torch.testing.assert_close(ours, theirs, atol=golden.STAGE_ATOL, rtol=0)
    for steps in golden.indices("sampler_streaming", r"steps(\d+)\."):
        for chunk in golden.indices("sampler_streaming", rf"steps{steps}\.chunk(\d+)\."):
            noise = samples["start_noise_full_horizon"][:, chunk * chunk_size : (chunk + 1) * chunk_size]
            proprio = samples["chunk_proprio"][chunk : chunk + 1]
            actions = policy.act(samples["chunk_obs_images_u8"][chunk], proprio, samples["text.context"], noise, chunk, steps)
            expected = samples[f"steps{steps}.chunk{chunk}.actions_normalized"]
            torch.testing.assert_close(actions, expected, atol=golden.SAMPLER_ATOL, rtol=0)


def test_memory_keeps_the_newest_refreshes_only():
    refreshes, policy = golden.arrays("prefill_memory"), golden_policy()
    for i in golden.indices("prefill_memory", r"refresh(\d+)\.image_u8"):
        frame_id = int(refreshes[f"refresh{i}.frame_index"])
        policy.refresh(refreshes[f"refresh{i}.image_u8"][0], refreshes["text.context"], frame_id)
    for ours, theirs in zip(policy.memory, golden.layers("prefill_memory", "memory_final"), strict=True):
        torch.testing.assert_close(ours, theirs, atol=golden.STAGE_ATOL, rtol=0)


def test_the_bf16_run_is_that_of_the_release_and_not_a_float32_one():
    refreshes, samples = golden.arrays("prefill_memory"), golden.arrays("sampler_streaming")
    recorded, chunk_size = golden.arrays("bf16_streaming"), golden.config().chunk_size
    policy = golden_policy()
    policy = UpstreamEager(policy.model.bfloat16(), policy.vae.bfloat16())
    text, words = (data["text.context"].bfloat16() for data in (refreshes, samples))
    for i in golden.indices("prefill_memory", r"refresh(\d+)\.image_u8"):
        policy.refresh(refreshes[f"refresh{i}.image_u8"][0], text, int(refreshes[f"refresh{i}.frame_index"]))
    for ours, theirs in zip(policy.context, golden.layers("bf16_streaming", "last_refresh"), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a.float() - b).norm() / b.norm() < BF16_CONTEXT
    for steps in golden.indices("bf16_streaming", r"steps(\d+)\."):
        for chunk in golden.indices("bf16_streaming", rf"steps{steps}\.chunk(\d+)\."):
            noise = samples["start_noise_full_horizon"][:, chunk * chunk_size : (chunk + 1) * chunk_size]
            proprio = samples["chunk_proprio"][chunk : chunk + 1]
            actions = policy.act(samples["chunk_obs_images_u8"][chunk], proprio, words, noise, chunk, steps)
            expected = recorded[f"steps{steps}.chunk{chunk}.actions_normalized"]
            gap = (samples[f"steps{steps}.chunk{chunk}.actions_normalized"] - expected).abs().max()
            error = (actions - expected).abs().max()
            assert error < BF16_ATOL
            assert error < gap / 2 or gap < BF16_ATOL  # where the tables hardly round, nothing tells the two apart


@pytest.fixture(scope="module")
def full_size_gflop() -> dict[str, float]:
    with torch.device("meta"):
        policy = UpstreamEager(AhaWam(full()).bfloat16(), WanVae().bfloat16())
        c = policy.model.config

        def zeros(*shape):
            return torch.zeros(*shape, dtype=torch.bfloat16)

        latent, text = zeros(1, 48, 1, c.latent_height, c.latent_width), zeros(1, c.text_len, c.text_dim)
        context = [(zeros(1, c.frame_tokens, c.attention_dim),) * 2] * c.num_layers
        words, actions = zeros(1, c.text_len + 1, c.text_dim), zeros(1, c.chunk_size, c.action_dim)

        def gflop(function):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                function()
            return counter.get_total_flops() / 1e9

        counted = {
            "vae": gflop(lambda: policy.vae.encode(zeros(1, 3, 1, c.image_height, c.image_width))),
            "prefill_cold": gflop(lambda: policy.prefill(latent, text, 0)),
            "observation": gflop(lambda: policy.model.chunk_obs_query_encoder(policy.model.visual_tokens(latent[:, :, 0]))),
            "editor": gflop(lambda: policy.model.editor(context, zeros(1, c.num_queries, c.text_dim))),
            "denoise": gflop(lambda: policy.velocity(actions, zeros(1), 0, context, words)),
        }
        tokens = c.memory_slots * c.frame_tokens
        policy.memory = [(zeros(1, tokens, c.attention_dim),) * 2] * c.num_layers
        return counted | {"prefill": gflop(lambda: policy.prefill(latent, text, 0))}


@pytest.mark.parametrize("stage", COUNTED_GFLOP)
def test_full_size_operations_are_those_counted_in_the_release(stage, full_size_gflop):
    assert full_size_gflop[stage] == pytest.approx(COUNTED_GFLOP[stage], rel=0.01)

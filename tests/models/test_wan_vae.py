"""The VAE against the golden arrays of the released code, and truths about causality, gradients and wrong shapes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from edgewam.models.wan_vae import WAN22_LATENT_MEAN, WAN22_LATENT_STD, WanVae, WanVaeConfig
from edgewam.models.wan_vae_blocks import CausalConv3d, average_down, channels_to_pixels, copy_up, pixels_to_channels
from tests.golden import GOLDEN
from tests.models import aha_wam_golden
from tests.models.aha_wam_golden import scaled

GOLDEN_TOLERANCE = (
    aha_wam_golden.STAGE_ATOL
)  # float32, values of order 1 to 10, about forty convolutions in another summation order
SAME_TOLERANCE = 1e-5  # float32, the same sums on other clip or batch sizes: the convolution library picks other kernels
FULL_HEIGHT, FULL_WIDTH = 384, 320


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return aha_wam_golden.arrays("vae")


@pytest.fixture(scope="module")
def vae() -> WanVae:
    return aha_wam_golden.read_vae()


def worst(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def test_full_size_has_the_keys_and_shapes_of_the_published_file():
    manifest = json.loads((GOLDEN / "manifests" / "manifest_wan22_vae.json").read_text())
    with torch.device("meta"):
        state = WanVae().state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == {key: shape for key, (shape, _) in manifest.items()}


def test_latent_constants_are_the_released_ones(golden):
    assert torch.equal(torch.tensor(WAN22_LATENT_MEAN), golden["norm.mean"])
    assert torch.equal(torch.tensor(WAN22_LATENT_STD), golden["norm.std"])


def test_image_latents_are_golden(vae, golden):
    latent = vae.encode_image(scaled(golden["images.input_u8"]))
    assert worst(latent.unsqueeze(2), golden["images.latent_normalized"]) < GOLDEN_TOLERANCE


def test_every_golden_activation_of_an_image_is_reproduced(vae, golden):
    prefix = "image0.activation."
    expected = {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
    assert expected
    seen: dict[str, Tensor] = {}
    handles = [
        vae.get_submodule(name).register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output}))
        for name in expected
    ]
    vae.encode_image(scaled(golden["images.input_u8"][:1]))
    for handle in handles:
        handle.remove()
    errors = {name: worst(seen[name], expected[name]) for name in expected}
    assert max(errors.values()) < GOLDEN_TOLERANCE, errors


def test_pixel_shuffle_is_golden_and_invertible(golden):
    image = scaled(golden["images.input_u8"][:1]).unsqueeze(2)
    shuffled = pixels_to_channels(image)
    assert worst(shuffled, golden["image0.patchified"]) < 1e-6
    assert torch.equal(channels_to_pixels(shuffled), image)


def test_video_latents_are_golden_although_the_release_streams_in_groups_of_four(vae, golden):
    latent = vae.encode(scaled(golden["video.input_u8"]))
    assert worst(latent, golden["video.latent_normalized"]) < GOLDEN_TOLERANCE


def test_reconstruction_is_golden(vae, golden):
    video = vae.decode(golden["video.latent_normalized"])
    assert worst(video, golden["video.reconstruction_from_latent"]) < GOLDEN_TOLERANCE


def test_a_later_frame_never_changes_an_earlier_latent(vae, golden):
    video = scaled(golden["video.input_u8"])
    before = vae.encode(video)
    for frame in range(1, video.shape[2]):
        first_affected = 1 + (frame - 1) // 4
        changed = video.clone()
        changed[:, :, frame] *= -1
        after = vae.encode(changed)
        assert torch.equal(after[:, :, :first_affected], before[:, :, :first_affected])
        assert worst(after[:, :, first_affected], before[:, :, first_affected]) > 1e-3


def test_a_later_latent_never_changes_an_earlier_frame(vae, golden):
    latent = golden["video.latent_normalized"]
    before = vae.decode(latent, clamp=False)
    for index in range(1, latent.shape[2]):
        changed, first_affected = latent.clone(), 4 * index - 3
        changed[:, :, index] *= -1
        after = vae.decode(changed, clamp=False)
        assert torch.equal(after[:, :, :first_affected], before[:, :, :first_affected])
        assert worst(after[:, :, first_affected], before[:, :, first_affected]) > 1e-3


def test_a_clip_and_its_beginning_agree_in_both_directions(vae, golden):
    video, latent = scaled(golden["video.input_u8"]), golden["video.latent_normalized"]
    whole, frames = vae.encode(video), vae.decode(latent)
    for k in range(latent.shape[2] - 1):
        assert worst(vae.encode(video[:, :, : 1 + 4 * k]), whole[:, :, : 1 + k]) < SAME_TOLERANCE
        assert worst(vae.decode(latent[:, :, : 1 + k]), frames[:, :, : 1 + 4 * k]) < GOLDEN_TOLERANCE


def test_clips_of_a_batch_do_not_mix(vae, golden):
    video = scaled(golden["video.input_u8"])[:, :, :5]
    other = video.flip(3)
    pair = vae.encode(torch.cat([video, other]))
    assert worst(pair[:1], vae.encode(video)) < SAME_TOLERANCE
    assert worst(pair[1:], vae.encode(other)) < SAME_TOLERANCE


def test_the_two_dimensional_road_equals_convolution_over_padded_frames():
    torch.manual_seed(0)
    conv = CausalConv3d(5, 7, 3).double()
    torch.nn.init.normal_(conv.weight)
    frame, nothing = torch.randn(2, 5, 1, 6, 5, dtype=torch.float64), torch.zeros(2, 5, 1, 6, 5, dtype=torch.float64)
    assert worst(conv(frame), conv(torch.cat([nothing, frame], 2))[:, :, 1:]) < 1e-12


def test_first_frame_shortcut_leaves_every_even_channel_zero():
    """The trap of the temporal stages: the zero frame fills whole groups, so nothing is a halved average."""
    x = torch.randn(1, 8, 1, 4, 4)
    y = average_down(x, 16, 2, 2)
    assert torch.count_nonzero(y[:, 0::2]) == 0
    assert worst(y[:, 1::2, 0], torch.nn.functional.avg_pool2d(x[:, :, 0], 2)) < 1e-6


def test_upward_shortcut_copies_frame_0_once_and_later_frames_twice():
    x = torch.arange(3.0).reshape(1, 1, 3, 1, 1).expand(1, 4, 3, 1, 1)
    assert copy_up(x, 4, 2, 2)[0, 0, :, 0, 0].tolist() == [0, 1, 1, 2, 2]


def test_gradients_of_a_round_trip_reach_every_weight_and_match_a_finite_difference(golden):
    vae = aha_wam_golden.read_vae().double().requires_grad_(True)
    video = scaled(golden["video.input_u8"])[:, :, :5, :32, :32].double()

    def loss() -> Tensor:
        return (vae.decode(vae.encode(video), clamp=False) - video).square().mean()

    parameters = list(vae.named_parameters())
    gradients = dict(zip([n for n, _ in parameters], torch.autograd.grad(loss(), [p for _, p in parameters]), strict=True))
    assert [name for name, gradient in gradients.items() if not gradient.abs().max() > 0] == []
    generator = torch.Generator().manual_seed(0)
    direction = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in parameters}
    slope = sum((gradients[name] * direction[name]).sum().item() for name in gradients)
    step = 1e-6
    with torch.no_grad():
        values = []
        for move in (step, -2 * step):
            for name, p in parameters:
                p += move * direction[name]
            values.append(loss().item())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-5)


def test_a_fresh_vae_treats_a_clip_of_one_repeated_frame_as_that_frame():
    torch.manual_seed(0)
    vae = WanVae(WanVaeConfig(dim=8, dec_dim=4)).requires_grad_(False)
    latent = torch.randn(1, 48, 1, 2, 2)
    frames = vae.decode(latent.expand(-1, -1, 3, -1, -1), clamp=False)
    assert frames.shape[2] == 9
    assert worst(frames, vae.decode(latent, clamp=False).expand(-1, -1, 9, -1, -1)) < SAME_TOLERANCE


def test_latent_statistics_only_rescale(vae, golden):
    z_dim = vae.config.z_dim
    plain = aha_wam_golden.read_vae(replace(vae.config, latent_mean=(0.0,) * z_dim, latent_std=(1.0,) * z_dim))
    image = scaled(golden["images.input_u8"]).unsqueeze(2)
    with torch.no_grad():
        mean, _ = plain.encode_moments(image)
        assert torch.equal(plain.encode(image), mean)
        rescaled = (mean - golden["norm.mean"].view(1, z_dim, 1, 1, 1)) / golden["norm.std"].view(1, z_dim, 1, 1, 1)
        assert worst(vae.encode(image), rescaled) < 1e-6


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 4, 32, 32), r"1 \+ 4k frames .* got T=4"),
        ((1, 3, 0, 32, 32), r"1 \+ 4k frames .* got T=0"),
        ((1, 3, 5, 40, 32), "multiples of 16, got 40x32"),
        ((1, 4, 5, 32, 32), r"\[B, 3, T, H, W\], got shape \(1, 4, 5, 32, 32\)"),
        ((3, 5, 32, 32), r"\[B, 3, T, H, W\]"),
    ],
)
def test_encode_says_which_shape_it_expects(vae, shape, message):
    with pytest.raises(ValueError, match=message):
        vae.encode(torch.zeros(shape))


def test_decode_and_encode_image_say_which_shape_they_expect(vae):
    with pytest.raises(ValueError, match=r"\[B, 48, 1\+k, h, w\], got shape \(1, 47, 1, 2, 2\)"):
        vae.decode(torch.zeros(1, 47, 1, 2, 2))
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        vae.encode_image(torch.zeros(1, 3, 1, 32, 32))


@pytest.mark.parametrize(
    "wrong", [{"dim_mult": (1, 2, 4, 8)}, {"latent_mean": (0.0,)}, {"temporal_downsample": (True, True, True)}, {"z_dim": 16}]
)
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="WanVaeConfig"):
        WanVaeConfig(**wrong)


def test_one_full_size_image_costs_571_gflop_in_3d_and_200_in_2d(monkeypatch):
    with torch.device("meta"):
        vae, image = WanVae(), torch.empty(1, 3, FULL_HEIGHT, FULL_WIDTH)
    assert count_gflop(lambda: vae.encode_image(image)) == pytest.approx(200, rel=0.01)

    def padded(self: CausalConv3d, x: Tensor) -> Tensor:
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, self.front, 0))
        return torch.nn.functional.conv3d(x, self.weight, self.bias, padding=self.padding)

    monkeypatch.setattr(CausalConv3d, "forward", padded)
    assert count_gflop(lambda: vae.encode_image(image)) == pytest.approx(571, rel=0.01)


def count_gflop(run) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9

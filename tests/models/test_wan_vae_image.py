"""The two-dimensional single-image encoder equals the VAE, counts what it should, and exports to ONNX."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from edgewam.models.wan_vae import WanVae, WanVaeConfig
from edgewam.models.wan_vae_image import image_encoder
from tests.models import aha_wam_golden as golden

ROUNDING_TOLERANCE = 5e-6  # float32 against float64, about forty convolutions; measured 2.6e-6
FOLDED_TOLERANCE = 2 * ROUNDING_TOLERANCE  # two float32 roads with independent errors; measured 3.4e-6
EXACT_TOLERANCE = 1e-11  # float64: nothing but the order of sums may differ
FULL_HEIGHT, FULL_WIDTH = 384, 320


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return golden.arrays("vae")["images.input_u8"]


def camera_image(image: torch.Tensor) -> torch.Tensor:
    return image.permute(1, 2, 0).contiguous()  # [H, W, 3]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, FOLDED_TOLERANCE), (torch.float64, EXACT_TOLERANCE)])
def test_image_encoder_equals_encode_image(images, dtype, tolerance):
    vae = golden.read_vae().to(dtype)
    encoder = image_encoder(vae)
    for image in images:
        expected = vae.encode_image(image[None].to(dtype) * (2 / 255) - 1)
        latent = encoder(camera_image(image))
        assert latent.dtype == dtype and latent.shape == expected.shape
        assert (latent - expected).abs().max().item() < tolerance


def test_folding_keeps_float32_as_close_to_the_exact_latent_as_rounding_allows(images):
    encoder, exact = image_encoder(golden.read_vae()), golden.read_vae().double()
    for image in images:
        expected = exact.encode_image(image[None].double() * (2 / 255) - 1)
        assert (encoder(camera_image(image)) - expected).abs().max().item() < ROUNDING_TOLERANCE


def test_image_encoder_reproduces_the_golden_latent(images):
    expected = golden.arrays("vae")["images.latent_normalized"]
    encoder = image_encoder(golden.read_vae())
    for image, latent in zip(images, expected, strict=True):
        assert (encoder(camera_image(image))[0] - latent[:, 0]).abs().max().item() < golden.STAGE_ATOL


@pytest.mark.parametrize("dim_mult", [(1, 1, 2, 2), (1, 2, 2, 2), (1, 1, 1, 1)])
def test_narrower_stages_collapse_exactly_too(dim_mult):
    torch.manual_seed(0)
    vae = WanVae(WanVaeConfig(dim=8, dec_dim=4, dim_mult=dim_mult)).double().requires_grad_(False)
    image = torch.randint(0, 256, (32, 48, 3), dtype=torch.uint8)
    expected = vae.encode_image(image.permute(2, 0, 1)[None].double() * (2 / 255) - 1)
    assert (image_encoder(vae)(image) - expected).abs().max().item() < EXACT_TOLERANCE


def test_a_shortcut_finer_than_a_pixel_block_is_refused():
    vae = WanVae(WanVaeConfig(dim=8, dec_dim=4, dim_mult=(1, 4, 4, 4)))
    with pytest.raises(ValueError, match="at most doubles"):
        image_encoder(vae)


def test_a_black_image_gives_finite_latents_even_with_zero_weights():
    vae = golden.read_vae()
    for parameter in vae.parameters():
        parameter.zero_()
    assert image_encoder(vae)(torch.zeros(32, 32, 3, dtype=torch.uint8)).isfinite().all()


def test_the_copy_is_frozen_and_independent():
    vae = golden.read_vae()
    encoder = image_encoder(vae)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    for parameter in vae.parameters():
        parameter.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_full_size_costs_200_gflop_and_54_million_weights():
    with torch.device("meta"):
        encoder = image_encoder(WanVae())
        image = torch.empty(FULL_HEIGHT, FULL_WIDTH, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        latent = encoder(image)
    assert latent.shape == (1, 48, FULL_HEIGHT // 16, FULL_WIDTH // 16)
    assert counter.get_total_flops() / 1e9 == pytest.approx(200, rel=0.01)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(53.9, rel=0.01)


def test_onnx_runtime_computes_the_same_latent(images, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    encoder, image = image_encoder(golden.read_vae()), camera_image(images[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(encoder, (image,), tmp_path / "encoder.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    (latent,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    assert (torch.from_numpy(latent) - encoder(image)).abs().max().item() < FOLDED_TOLERANCE

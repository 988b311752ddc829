"""The profile of the image encoder: every convolution is found, counted as torch counts it, and run as it is in the encoder."""

import pytest

pytest.importorskip("torch", reason="needs the extra train")

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import vae_profile
from benchmarks.gpu.jobs import find_jobs
from benchmarks.gpu.random_policy import random_policy, sizes
from edgewam.models import wan_vae_image
from edgewam.models.wan_vae import WanVae
from edgewam.models.wan_vae_image import image_encoder

torch.set_num_threads(1)
IMAGE = torch.arange(64 * 48 * 3, dtype=torch.int32).remainder(251).byte().view(64, 48, 3)


@pytest.fixture(scope="module")
def encoder():
    return image_encoder(random_policy("tiny", torch.float32, "cpu", 0)[1])


def test_convolutions_are_counted_as_torch_counts_them(encoder):
    found = vae_profile.convolutions(encoder, IMAGE)
    assert len(found) == sum(isinstance(layer, torch.nn.Conv2d) for layer in encoder.modules())
    with FlopCounterMode(display=False) as counter:
        encoder(IMAGE)
    counts = counter.get_flop_counts()["Global"]
    assert sum(vae_profile.operations(*pair) for pair in found) == counts[torch.ops.aten.convolution]


def test_the_full_size_is_that_of_the_page():
    config, sizes_of_vae = sizes("full")
    with torch.device("meta"):
        full = image_encoder(WanVae(sizes_of_vae).bfloat16())
    moved = []
    norms = [layer for layer in full.modules() if isinstance(layer, wan_vae_image._NormSilu)]
    for layer in norms:
        layer.register_forward_hook(lambda _, given, out: moved.append(given[0].nbytes + out.nbytes))
    image = torch.empty(config.image_height, config.image_width, 3, dtype=torch.uint8, device="meta")
    found = vae_profile.convolutions(full, image)
    gflop = sum(vae_profile.operations(*pair) for pair in found) / 1e9
    assert (len(found), round(gflop, 1)) == (31, 199.5)
    assert (len(norms), sum(layer.activate for layer in norms), round(sum(moved) / 1e6, 1)) == (22, 21, 142.5)


def test_both_layouts_are_the_same_convolutions(encoder):
    found = vae_profile.convolutions(encoder, IMAGE)
    results, keep = {name: [] for name in vae_profile.LAYOUTS}, torch.nn.Conv2d._conv_forward
    for name, layout in vae_profile.LAYOUTS.items():

        def forward(layer, x, weight, bias, kept=results[name], layout=layout):
            assert x.is_contiguous(memory_format=layout) and weight.is_contiguous(memory_format=layout)
            kept.append(keep(layer, x, weight, bias))
            return kept[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.Conv2d, "_conv_forward", forward)
            vae_profile.all_of(found, layout)()
    for a, b in zip(*results.values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_the_profile_names_both_parts():
    (job,) = find_jobs(["vae_profile"])
    sections = {}
    vae_profile.run(job.small(), "cpu", sections.__setitem__)
    (section,) = sections.values()
    whole, nchw, nhwc = (section.timings[name].p50_ms for name in ("whole", "convolutions_nchw", "convolutions_nhwc"))
    assert section.figures["between_ms"] == pytest.approx(whole - min(nchw, nhwc))
    assert section.figures["between_share"] == pytest.approx(section.figures["between_ms"] / whole)

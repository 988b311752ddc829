"""Where the image encoder's time goes at full size: its convolutions alone against all of it, and its longest kernels.

What lies between the convolutions (norms, SiLU, sums, paddings) is the most that kernels of our own could win by fusing it into
them; `between_share` says whether that is worth a kernel.  Convolutions are timed in both layouts of their input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.compilers import fast_function
from benchmarks.gpu.gpu_clock import capture, gpu_contract, time_device
from benchmarks.gpu.jobs import Emit, Job
from benchmarks.gpu.random_policy import random_policy
from benchmarks.gpu.rates import measured_device
from benchmarks.results import Section
from edgewam.models.wan_vae_image import ImageEncoder, image_encoder

LONGEST = 12  # kernels that are named
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def run(job: Job, device: str, emit: Emit) -> None:
    """Section `image_encoder`: whole, convolutions alone in both layouts, the difference to the faster one, and the floor."""
    p = job.params
    model, vae = random_policy(p["size"], getattr(torch, p["dtype"]), device, p["seed"])
    shape, encoder = (model.config.image_height, model.config.image_width, 3), image_encoder(vae)
    del model, vae
    image = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    function = fast_function(encoder, p["compiler"], device)
    timings = {"whole": time_device(capture(lambda: function(image), device), device, p["n"], p["warmup"])}
    inputs = convolutions(encoder, image)
    for name, layout in LAYOUTS.items():
        call = all_of(inputs, layout)
        timings[f"convolutions_{name}"] = time_device(capture(call, device), device, p["n"], p["warmup"])
    whole, alone = timings["whole"].p50_ms, min(timings[f"convolutions_{name}"].p50_ms for name in LAYOUTS)
    gflop = sum(operations(layer, x) for layer, x in inputs) / 1e9
    rate = measured_device(device).peak_tflops["bf16"].value
    figures: dict[str, Any] = {
        "convolutions": len(inputs), "gflop": gflop, "convolutions_floor_ms": gflop / rate,
        "convolutions_x_floor": alone / (gflop / rate), "between_ms": whole - alone, "between_share": (whole - alone) / whole,
        **longest(lambda: function(image), device),
    }  # fmt: skip
    contract = gpu_contract(
        device, engine=f"2-D image encoder, {p['compiler']}, CUDA graph", precision=p["dtype"], steps=0, shapes={"image": shape},
        stages=("image_encoder",), host_copies=False, warmup=p["warmup"], n=p["n"], clock="cuda_events",
        notes="random weights; convolutions alone are cuDNN's, one after another on ready inputs",
    )  # fmt: skip
    emit("image_encoder", Section(contract, figures, timings))


def convolutions(encoder: ImageEncoder, image: Tensor) -> list[tuple[nn.Conv2d, Tensor]]:
    """Every convolution with random numbers in the shape of its input, in their order."""
    found: list[tuple[nn.Conv2d, Tensor]] = []

    def note(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        found.append((layer, torch.randn_like(given[0])))

    hooks = [layer.register_forward_pre_hook(note) for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    with torch.inference_mode():
        encoder(image)
    for hook in hooks:
        hook.remove()
    return found


def all_of(inputs: list[tuple[nn.Conv2d, Tensor]], layout: torch.memory_format) -> Callable[[], None]:
    """One function that runs all convolutions, inputs and weights in one layout."""
    with torch.inference_mode():
        ready = [
            (layer, x.contiguous(memory_format=layout), layer.weight.contiguous(memory_format=layout)) for layer, x in inputs
        ]

    def call() -> None:
        with torch.inference_mode():
            for layer, x, weight in ready:
                layer._conv_forward(x, weight, layer.bias)

    return call


def operations(layer: nn.Conv2d, x: Tensor) -> int:
    """Multiplications and additions of one convolution."""
    height, width = ((side + 2 * p - k) // s + 1 for side, p, k, s in zip(
        x.shape[2:], layer.padding, layer.kernel_size, layer.stride, strict=True))  # type: ignore[arg-type]  # fmt: skip
    return 2 * layer.weight.numel() * height * width


def longest(function: Callable[[], object], device: str) -> dict[str, str]:
    """The longest kernels of one call as `kernel_1`, ...: microseconds, calls and name; or why they are not known."""
    if device == "cpu":
        return {}
    activities = [torch.profiler.ProfilerActivity.CUDA]
    try:
        function()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=activities) as profile:
            function()
            torch.cuda.synchronize()
        rows = sorted(profile.key_averages(), key=lambda row: -row.self_device_time_total)[:LONGEST]
    except RuntimeError as error:  # a machine may keep its counters to itself; the differences above are still known
        return {"kernels": f"not known: {str(error).splitlines()[0][:200]}"}
    named = [f"{row.self_device_time_total:.1f} us, {row.count} calls: {row.key[:90]}" for row in rows]
    return {f"kernel_{index}": text for index, text in enumerate(named, 1)} or {"kernels": "not known: none was seen"}

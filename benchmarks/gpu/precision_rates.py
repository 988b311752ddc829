"""One denoise step's matrix products as one chain in one graph, in bf16 and in fp8: what eight bits could win on this card.

Every layer has weights of its own and waits for the one before, as in the model; norms, attention and activations are left
out, so the chain is a bound from below for both formats.  fp8 is `torch._scaled_mm` with scales of one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.gpu_clock import capture, gpu_contract, time_device
from benchmarks.gpu.jobs import Emit, Job
from benchmarks.gpu.rates import measured_device
from benchmarks.results import Section

FP8 = torch.float8_e4m3fn


def run(job: Job, device: str, emit: Emit) -> None:
    """Sections `bf16` and `fp8`: milliseconds of the chain, its bytes and what they would need at this card's bandwidth."""
    p = job.params
    layers, shapes = p["layers"], [tuple(shape) for shape in p["shapes"]]
    generator = torch.Generator(device).manual_seed(0)

    def draw(width: int, out: int) -> Tensor:
        return torch.randn(out, width, device=device, generator=generator).bfloat16() * width**-0.5

    weights = [[draw(*shape) for shape in shapes] for _ in range(layers)]
    x = torch.randn(p["rows"], shapes[0][0], device=device, generator=generator).bfloat16()
    num_bytes = sum(w.numel() for layer in weights for w in layer)
    for name, size in (("bf16", 2), ("fp8", 1)):
        chain = bf16_chain(x, weights) if name == "bf16" else fp8_chain(x, weights)
        made = gpu_contract(
            device, engine="torch mm chain, CUDA graph", precision=name, steps=1,
            shapes={"rows": (p["rows"],), "layers": (layers,)}, stages=("products",), host_copies=False,
            warmup=p["warmup"], n=p["n"], clock="cuda_events",
            notes=f"products in x out: {', '.join(f'{a}x{b}' for a, b in shapes)}",
        )  # fmt: skip
        try:
            out = chain()
        except RuntimeError as error:
            if name != "fp8" or isinstance(error, torch.OutOfMemoryError):
                raise
            # not every device has this product: that is a finding, not a failure of the job
            emit(name, Section(made, {"refused": str(error).splitlines()[0][:300]}))
            continue
        assert out.isfinite().all() and out.abs().max() > 0, "the chain is not a number or nothing"
        timing = time_device(capture(chain, device), device, p["n"], p["warmup"])
        floor_ms = size * num_bytes / measured_device(device).bandwidth_gb_s.value / 1e6
        figures = {
            "floor_ms": floor_ms, "x_floor": timing.p50_ms / floor_ms,
            "us_per_product": timing.p50_ms * 1e3 / (layers * len(shapes)),
        }  # fmt: skip
        emit(name, Section(made, figures, {"chain": timing}))


def _fit(x: Tensor, width: int) -> Tensor:
    """The first `width` columns, so that every product waits for the one before whatever its size."""
    return x[:, :width].contiguous() if x.shape[1] >= width else x.repeat(1, -(-width // x.shape[1]))[:, :width].contiguous()


def bf16_chain(x: Tensor, weights: list[list[Tensor]]) -> Callable[[], Tensor]:
    """All products of x [S, in], layer by layer, each waiting for the one before."""

    def chain() -> Tensor:
        h = x
        for layer in weights:
            for weight in layer:
                h = _fit(h, weight.shape[1]) @ weight.t()
        return h

    return chain


def fp8_chain(x: Tensor, weights: list[list[Tensor]]) -> Callable[[], Tensor]:
    """The same with weights and inputs in FP8, scales of one, rounding in between."""
    eight, one = [[w.to(FP8) for w in layer] for layer in weights], torch.ones((), device=x.device)

    def chain() -> Tensor:
        h = x.to(FP8)
        for layer in eight:
            for weight in layer:
                h = torch._scaled_mm(_fit(h, weight.shape[1]), weight.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16).to(
                    FP8
                )
        return h.to(torch.bfloat16)

    return chain

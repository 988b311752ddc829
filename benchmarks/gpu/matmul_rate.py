"""Rates of matrix products on random data: one large square for the peak, and the thin products of the chunk path.

Thin products go through enough different weights to leave the cache, in one CUDA graph, so that what is timed is reading
weights and not launching.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.gpu_clock import capture, gpu_contract, time_device
from benchmarks.gpu.jobs import Emit, Job
from benchmarks.results import Section
from edgewam.profiles.measure import Timing

FP8 = torch.float8_e4m3fn


def run(job: Job, device: str, emit: Emit) -> None:
    """Sections: `square_<format>` and `<format>_<rows>x<in>x<out>`; an fp8 product that the library refuses is a figure too."""
    p, generator = job.params, torch.Generator(device).manual_seed(0)
    size = p["square"]
    for name, product in _products(size, size, size, 1, device, generator).items():
        _measure(f"square_{name}", name, product, (size, size, size), 1, job, device, emit)
    for rows in p["rows"]:
        for width, out in p["weights"]:
            count = max(1, p["working_set_mb"] * 10**6 // (2 * width * out))
            for name, product in _products(rows, width, out, count, device, generator).items():
                _measure(f"{name}_{rows}x{width}x{out}", name, product, (rows, width, out), count, job, device, emit)


def _products(m: int, k: int, n: int, count: int, device: str, generator: torch.Generator) -> dict[str, Callable[[], Tensor]]:
    """Product of [m, k] with `count` different [n, k] weights, in bf16 and in fp8 (per-tensor scales, bf16 out)."""
    a = torch.randn(m, k, device=device, generator=generator).bfloat16()
    weights = [torch.randn(n, k, device=device, generator=generator).bfloat16() for _ in range(count)]
    one = torch.ones((), device=device)
    a8, weights8 = a.to(FP8), [w.to(FP8) for w in weights]

    def bf16() -> Tensor:
        return [a @ w.t() for w in weights][-1]

    def fp8() -> Tensor:
        return [torch._scaled_mm(a8, w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16) for w in weights8][-1]

    return {"bf16": bf16, "fp8": fp8}


def _measure(
    section: str,
    name: str,
    product: Callable[[], Tensor],
    shape: tuple[int, int, int],
    count: int,
    job: Job,
    device: str,
    emit: Emit,
) -> None:
    m, k, n = shape
    runs, warmup = job.params["n"], job.params["warmup"]
    contract_of = dict(
        engine="torch mm, CUDA graph" if count > 1 else "torch mm", precision=name, steps=0,
        shapes={"rows_in_out": shape, "weights": (count,)}, stages=("product",), host_copies=False, warmup=warmup, n=runs,
        clock="cuda_events",
    )  # fmt: skip
    try:
        reference = product()
    except RuntimeError as error:
        if name != "fp8" or isinstance(error, torch.OutOfMemoryError):
            raise
        # not every device has this product: that is a finding, not a failure of the job
        emit(section, Section(gpu_contract(device, **contract_of), {"refused": str(error).splitlines()[0][:300]}))
        return
    assert reference.isfinite().all() and reference.abs().max() > 0, "the product is not a number or nothing"
    timing = time_device(capture(product, device) if count > 1 else product, device, runs, warmup)
    each = Timing.from_samples([timing.p50_ms / count])
    figures = {
        "tflops": 2 * m * k * n / each.p50_ms / 1e9,
        "weight_gb_s": n * k * (1 if name == "fp8" else 2) / each.p50_ms / 1e6,
        "us_per_product": each.p50_ms * 1e3,
    }
    emit(section, Section(gpu_contract(device, **contract_of), figures, {"all_products": timing}))

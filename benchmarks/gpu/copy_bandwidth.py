"""Bandwidth of device memory: large copies from device to device, counting the bytes read and the bytes written."""

from __future__ import annotations

import torch

from benchmarks.gpu.gpu_clock import gpu_contract, time_device
from benchmarks.gpu.jobs import Emit, Job
from benchmarks.results import Section


def run(job: Job, device: str, emit: Emit) -> None:
    """One section per size in 10^6 bytes; sizes that fit the cache show the cache and are labelled so by their size."""
    n, warmup = job.params["n"], job.params["warmup"]
    for size_mb in job.params["sizes_mb"]:
        size = size_mb * 10**6
        source = torch.empty(size, dtype=torch.uint8, device=device).random_()
        target = torch.empty_like(source)
        timing = time_device(lambda source=source, target=target: target.copy_(source), device, n, warmup)
        assert torch.equal(source[-4096:], target[-4096:]), "the copy did not happen"
        contract = gpu_contract(
            device, engine="torch copy", precision="uint8", steps=0, shapes={"bytes": (size,)}, stages=("copy",),
            host_copies=False, warmup=warmup, n=n, clock="cuda_events",
        )  # fmt: skip
        gb_s = 2 * size / timing.p50_ms / 1e6
        emit(f"{size_mb}MB", Section(contract, {"bandwidth_gb_s": gb_s}, {"copy": timing}))
        del source, target

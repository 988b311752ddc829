"""Latency of a dependent node: a chain of tiny kernels, each needing the one before, as a CUDA graph and launched one by one.

The difference between a long and a short chain divided by the difference of their lengths leaves the fixed cost out.
"""

from __future__ import annotations

import torch

from benchmarks.gpu.gpu_clock import capture, gpu_contract, synchronize, time_device
from benchmarks.gpu.jobs import Emit, Job
from benchmarks.results import Section
from edgewam.profiles.measure import measure


def run(job: Job, device: str, emit: Emit) -> None:
    """Sections `graph_<elements>` and `eager_<elements>`, with `us_per_node`."""
    short, long = job.params["chains"]
    n, warmup = job.params["n"], job.params["warmup"]
    for elements in job.params["elements"]:
        x = torch.zeros(elements, dtype=torch.float32, device=device)

        def chain(length: int, x: torch.Tensor = x) -> None:
            for _ in range(length):
                x.add_(1.0)

        x.zero_()
        chain(short)
        assert x.eq(short).all(), "a node of the chain did not run"
        timings = {}
        for length in (short, long):
            replay = capture(lambda length=length: chain(length), device)
            timings[f"{length}_nodes"] = time_device(replay, device, n, warmup)
        _emit(f"graph_{elements}", "CUDA graph", elements, timings, job, device, "cuda_events", emit)

        def launch(length: int) -> None:
            chain(length)
            synchronize(device)

        eager = {f"{k}_nodes": measure(lambda k=k: launch(k), max(3, n // 5), warmup) for k in (short, long)}
        _emit(f"eager_{elements}", "eager", elements, eager, job, device, "wall", emit)


def _emit(name: str, engine: str, elements: int, timings: dict, job: Job, device: str, clock: str, emit: Emit) -> None:
    short, long = job.params["chains"]
    contract = gpu_contract(
        device, engine=engine, precision="fp32", steps=0, shapes={"elements": (elements,), "chains": (short, long)},
        stages=("chain",), host_copies=False, warmup=job.params["warmup"], n=timings[f"{long}_nodes"].n, clock=clock,
    )  # fmt: skip
    us = (timings[f"{long}_nodes"].p50_ms - timings[f"{short}_nodes"].p50_ms) / (long - short) * 1e3
    emit(name, Section(contract, {"us_per_node": us}, timings))

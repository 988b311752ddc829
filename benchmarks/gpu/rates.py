"""What this card does right now: bandwidth of a large copy and rate of a large bf16 product, the two numbers of every floor.

Measured once per process, beside the figures that are divided by it (DESIGN section 7); a second of device time.
"""

from __future__ import annotations

import functools

import torch

from benchmarks.gpu.gpu_clock import time_device
from edgewam.profiles.device import Device, Quantity, find_device
from edgewam.profiles.machine import read_machine

COPY_BYTES = 10**9  # far beyond every cache
SQUARE = 8192
TOY_BYTES, TOY_SQUARE = 10**6, 64  # on a processor, to try the code


@functools.lru_cache
def measured_device(device: str) -> Device:
    """This device with measured bandwidth and bf16 rate; facts of a card that has no file are left empty."""
    on_gpu = device != "cpu"
    bandwidth = copy_gb_s(COPY_BYTES if on_gpu else TOY_BYTES, device)
    rate = product_tflops(SQUARE if on_gpu else TOY_SQUARE, device)
    name = torch.cuda.get_device_name() if on_gpu else read_machine().cpu
    nothing = Quantity(1.0, "not known")
    known = find_device(name) or Device(name, name, "sm_00", nothing, nothing, {"bf16": nothing})
    return known.with_rates("this card", bandwidth, {"bf16": rate})


def copy_gb_s(num_bytes: int, device: str) -> float:
    """10^9 bytes per second of a device-to-device copy, read plus written."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    timing = time_device(lambda: target.copy_(source), device, n=10, warmup=3)
    return 2 * num_bytes / timing.p50_ms / 1e6


def product_tflops(size: int, device: str) -> float:
    """10^12 operations per second of a square bf16 product of random data."""
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return 2 * size**3 / time_device(lambda: a @ b, device, n=10, warmup=3).p50_ms / 1e9

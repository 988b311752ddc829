"""Floors of the full-size model for the plans that are measured: costs per stage, counted (facts/aha_wam.md 8).

`released` is the plan of `upstream_eager`; `hoisted` is what is left on the chunk path after the exact rewrites, in bf16.
`measured_device` takes bandwidth and rates from this machine's own records, as DESIGN section 7 asks.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.results import read_record
from edgewam.core.errors import EdgewamError
from edgewam.core.stage import Cost
from edgewam.profiles.device import Device, find_device

_GB = 10**9


def _cost(weight_gb: float, gflop: float, rows: int, io_gb: float = 0.0) -> Cost:
    return Cost(round(weight_gb * _GB), round(gflop * _GB), rows, round(io_gb * _GB))


# bytes in bf16: 2 per weight; io: planner keys and values read and written, memory of six refreshes
RELEASED_CHUNK = {
    "vae": _cost(0.299, 571.2, 480, 0.179),
    "observation": _cost(0.202, 67.0, 480),
    "editor": _cost(2.455, 230.8, 120, 0.088),
    "denoise": _cost(2.04, 77.8, 16, 0.044),
}
RELEASED_PREFILL = {
    "vae": _cost(0.299, 571.2, 480, 0.179),
    "prefill": _cost(10.0, 1251.5, 120, 0.265),
    "memory": _cost(0.0, 0.0, 120, 0.53),  # the release joins by copying: 265 MB read and written
}
HOISTED_CHUNK = {
    "vae": _cost(0.108, 200.0, 480, 0.179),
    "observation": _cost(0.1686, 35.9, 480),
    "editor": _cost(2.455, 230.8, 120, 0.088),
    "proprio": _cost(0.3878, 0.39, 1),
    "denoise": _cost(1.6358, 27.7, 16, 0.056),
}


def measured_device(device_name: str, folders: list[Path]) -> Device | None:
    """The device with the bandwidth and the rates recorded on it; None while one is missing or the device has no file."""
    try:
        copy = next(read_record(path) for f in folders if (path := f / "copy_bandwidth.json").exists())
        product = next(read_record(path) for f in folders if (path := f / "matmul_rate.json").exists())
    except (StopIteration, EdgewamError):
        return None
    bandwidth = [float(s.figures["bandwidth_gb_s"]) for s in copy.sections.values() if "bandwidth_gb_s" in s.figures]
    rates = {
        name: float(section.figures["tflops"])
        for name in ("bf16", "fp8")
        if (section := product.sections.get(f"square_{name}")) and "tflops" in section.figures
    }
    if not bandwidth or "bf16" not in rates or {copy.device, product.device} != {device_name}:
        return None
    device = find_device(device_name)
    # the largest copy: smaller ones may live in the cache
    return device and device.with_rates("this card", bandwidth[-1], rates)

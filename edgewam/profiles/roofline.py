"""The least time a plan can take on a device: max(bytes / bandwidth, operations / rate) per stage, stages one after another.

It needs the declared costs and the device's facts only, neither torch nor the device.  It leaves out launches, the chain of
dependent kernels and the host, so it is a floor and never a prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgewam.core.errors import EdgewamError
from edgewam.core.stage import Cost
from edgewam.profiles.device import Device

Formats = str | Mapping[str, float]  # of a stage's products: one format, or format -> its share of the operations


@dataclass(frozen=True)
class StageFloor:
    """Floor of one stage: `memory_ms` and `compute_ms` of one call, `calls` per run of the plan.

    compute_format: of its products; of the largest share of them where they differ.
    """

    name: str
    calls: int
    memory_ms: float
    compute_ms: float
    compute_format: str

    @property
    def ms(self) -> float:
        """Floor of one call, milliseconds."""
        return max(self.memory_ms, self.compute_ms)

    @property
    def bound(self) -> Literal["memory", "compute"]:
        """Which of the two terms is the larger."""
        return "memory" if self.memory_ms >= self.compute_ms else "compute"


@dataclass(frozen=True)
class Roofline:
    """Floors of all stages of a plan on one device."""

    device: str
    stages: tuple[StageFloor, ...]

    @property
    def total_ms(self) -> float:
        """Floor of the whole plan, milliseconds."""
        return sum(stage.calls * stage.ms for stage in self.stages)

    def stage(self, name: str) -> StageFloor | None:
        """Floor of one stage, None if the plan does not have it."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        rows = [
            {
                "name": s.name,
                "calls": s.calls,
                "ms": s.ms,
                "memory_ms": s.memory_ms,
                "compute_ms": s.compute_ms,
                "compute_format": s.compute_format,
                "bound": s.bound,
            }
            for s in self.stages
        ]
        return {"device": self.device, "total_ms": self.total_ms, "stages": rows}


def roofline(
    costs: Mapping[str, Cost],
    device: Device,
    formats: str | Mapping[str, Formats] = "bf16",
    calls: Mapping[str, int] | None = None,
    *,
    from_memory: bool = True,
) -> Roofline:
    """Floor of a plan.

    Args:
        costs: stage name -> cost of one call.  `weight_bytes + io_bytes` must cross the device's memory.
        device: where it runs.
        formats: format of the products, for all stages or by stage name; one without a matrix unit there runs in bf16.
        calls: runs of a stage per run of the plan, such as {"denoise": 2}; 1 where not named.
        from_memory: whether the bytes come from memory in every call; False where everything stays in the cache.

    Raises:
        EdgewamError: formats or calls name a stage that has no cost, or a stage has no format.
    """
    calls = calls or {}
    named = set(calls) | (set(formats) if isinstance(formats, Mapping) else set())
    if unknown := named - set(costs):
        raise EdgewamError(f"No cost for the stages {sorted(unknown)}. Available: {', '.join(costs)}.")
    floors = []
    for name, cost in costs.items():
        wanted = formats if isinstance(formats, str) else formats.get(name)
        if wanted is None:
            raise EdgewamError(f"Stage '{name}' has no format. Give one format for all stages or one for each.")
        shares = {wanted: 1.0} if isinstance(wanted, str) else wanted
        memory_ms = (cost.weight_bytes + cost.io_bytes) / device.bandwidth_gb_s.value / 1e6 if from_memory else 0.0
        rates = {kind: device.peak_tflops[device.compute_format(kind)].value for kind in shares}
        compute_ms = sum(cost.flops * share / rates[kind] / 1e9 for kind, share in shares.items())
        compute_format = device.compute_format(max(shares, key=lambda kind: shares[kind]))
        floors.append(StageFloor(name, calls.get(name, 1), memory_ms, compute_ms, compute_format))
    return Roofline(device.name, tuple(floors))


def fits_cache(costs: Mapping[str, Cost], device: Device) -> bool:
    """Whether all weights and buffers of a plan lie in the device's last cache, so that memory sets no floor."""
    total = sum(cost.weight_bytes + cost.io_bytes for cost in costs.values())
    return device.cache_mb is not None and total <= device.cache_mb.value * 1e6

"""Floor, measured and ratio of every stage of every program, as text tables and as JSON.

The measured column is "-" where nobody measured: nothing is made up.  Ratios are measured / floor, of medians.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgewam.core.stage import Cost
from edgewam.profiles.contract import TimingContract
from edgewam.profiles.device import Device
from edgewam.profiles.report import table
from edgewam.profiles.roofline import Roofline

_LEAST_MS = 1e-3  # below a microsecond of floor a ratio says what a call costs and not how good the stage is


@dataclass(frozen=True)
class Measured:
    """Medians of one call in milliseconds: of stages, and of whole programs.

    source: what was measured, in words.  contracts: the timing contracts, by what they were measured for.
    """

    source: str
    stages: Mapping[tuple[str, str], float] = field(default_factory=dict)  # (program, stage) -> ms
    programs: Mapping[str, float] = field(default_factory=dict)
    contracts: Mapping[str, TimingContract] = field(default_factory=dict)


@dataclass(frozen=True)
class FloorReport:
    """Floors of a model under a plan on a device, with what was measured there.

    steps: rows of each program's loop.  plan: in words.  costs: under the plan, by stage.  cached: programs whose bytes lie in
    the device's cache, so that memory sets no floor.
    """

    title: str
    device: Device
    plan: str
    plan_text: str
    costs: Mapping[str, Cost]
    floors: Mapping[str, Roofline]
    steps: Mapping[str, int]
    cached: tuple[str, ...] = ()
    measured: Measured | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form; measured_ms and ratio are None where there is no measurement."""
        programs = {}
        for name, floor in self.floors.items():
            rows = []
            for stage, row in zip(floor.stages, floor.to_json()["stages"], strict=True):
                cost = self.costs[stage.name]
                numbers = {"weight_bytes": cost.weight_bytes, "io_bytes": cost.io_bytes, "flops": cost.flops}
                rows.append({**row, **numbers, **_compared(self._stage_ms(name, stage.name), stage.ms)})
            programs[name] = {
                "steps": self.steps[name], "floor_ms": floor.total_ms, "from_memory": name not in self.cached,
                **_compared(self._program_ms(name), floor.total_ms), "stages": rows,
            }  # fmt: skip
        device = self.device
        rates = {
            kind: {"value": q.value, "source": q.source} for kind, q in device.peak_tflops.items() if kind in self._formats()
        }
        return {
            "model": self.title,
            "device": {"name": device.name, "title": device.title, "sm": device.sm},
            "bandwidth_gb_s": {"value": device.bandwidth_gb_s.value, "source": device.bandwidth_gb_s.source},
            "peak_tflops": rates,
            "plan": self.plan,
            "plan_text": self.plan_text,
            "measured": self.measured.source if self.measured else None,
            "contracts": {name: contract.to_json() for name, contract in self.measured.contracts.items()}
            if self.measured
            else {},
            "programs": programs,
        }

    def text(self) -> str:
        """A head that says what the floors stand on, and one table per program."""
        device = self.device
        rates = [f"{kind} {_rate(device.peak_tflops[kind].value, kind)}" for kind in self._formats()]
        sources = {"memory": device.bandwidth_gb_s.source} | {kind: device.peak_tflops[kind].source for kind in self._formats()}
        names = ", ".join(filter(None, [device.sm, device.name if ":" in device.name else ""]))
        where = f" ({names})" if names else ""
        lines = [
            f"{self.title}",
            f"  on {device.title}{where}: memory {device.bandwidth_gb_s.value:.4g} GB/s, {', '.join(rates)}",
            *(f"    {name}: {source}" for name, source in sources.items()),
            f"  plan {self.plan}: {self.plan_text}",
            f"  measured: {self.measured.source if self.measured else 'nothing; --measured FILE fills that column'}",
            "  floor: the larger of bytes / memory and operations / products, stage after stage; without launches and host",
        ]
        for name, floor in self.floors.items():
            lines += ["", self._head(name), table(self._rows(name, floor))]
        return "\n".join(lines)

    def _head(self, name: str) -> str:
        steps = f", {self.steps[name]} steps" if self.steps[name] else ""
        cached = "; its weights and buffers lie in the cache, so memory sets no floor" if name in self.cached else ""
        return f"program {name}{steps}{cached}"

    def _rows(self, name: str, floor: Roofline) -> list[list[str]]:
        rows = [
            ["stage", "calls", "weights MB", "in+out MB", "GFLOP", "products", "bound by", "floor ms", "measured ms", "x floor"]
        ]
        for stage in floor.stages:
            cost, ms = self.costs[stage.name], self._stage_ms(name, stage.name)
            sizes = [_number(cost.weight_bytes / 1e6), _number(cost.io_bytes / 1e6), _number(cost.flops / 1e9)]
            rows.append([
                stage.name, str(stage.calls), *sizes, stage.compute_format, stage.bound if stage.ms else "-",
                _number(stage.ms), *_cells(ms, stage.ms),
            ])  # fmt: skip
        moved = [sum(getattr(self.costs[s.name], key) * s.calls for s in floor.stages) for key in ("weight_bytes", "io_bytes")]
        flops = sum(self.costs[s.name].flops * s.calls for s in floor.stages)
        sizes = [*(_number(size / 1e6) for size in moved), _number(flops / 1e9)]
        whole = self._program_ms(name)
        rows.append(["one run", "", *sizes, "", "", _number(floor.total_ms), *_cells(whole, floor.total_ms)])
        return rows

    def _formats(self) -> list[str]:
        used = dict.fromkeys(stage.compute_format for floor in self.floors.values() for stage in floor.stages)
        return [*used]

    def _stage_ms(self, program: str, stage: str) -> float | None:
        return self.measured.stages.get((program, stage)) if self.measured else None

    def _program_ms(self, program: str) -> float | None:
        return self.measured.programs.get(program) if self.measured else None


def _compared(ms: float | None, floor_ms: float) -> dict[str, float | None]:
    return {"measured_ms": ms, "ratio": ms / floor_ms if ms is not None and floor_ms else None}


def _cells(ms: float | None, floor_ms: float) -> list[str]:
    ratio = _compared(ms, floor_ms)["ratio"]
    return ["-" if ms is None else _number(ms), "-" if ratio is None or floor_ms < _LEAST_MS else f"{ratio:.1f}"]


def _rate(tera: float, kind: str) -> str:
    unit = "OP" if kind == "int8" else "FLOP"
    return f"{tera:g} T{unit}/s" if tera >= 1 else f"{tera * 1e3:.3g} G{unit}/s"


def _number(value: float) -> str:
    """Three digits where there are as many: 2657, 28.0, 1.06, 0.951; what would be 0.000 is <0.001."""
    if not value:
        return "0"
    if value < 0.0005:
        return "<0.001"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"

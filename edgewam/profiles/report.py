"""A profile: stage timings with shares and floors under their timing contract, as a text table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.profiles.contract import TimingContract
from edgewam.profiles.measure import Timing
from edgewam.profiles.roofline import Roofline


@dataclass(frozen=True)
class Profile:
    """Timings of one program.

    total: the whole program as it is used.  stages: name -> one call.  calls: runs of a stage per run of the program
    (1 where not named).  floor: roofline of the same plan, None where the device is not known.
    """

    title: str
    contract: TimingContract
    total: Timing
    stages: Mapping[str, Timing] = field(default_factory=dict)
    calls: Mapping[str, int] = field(default_factory=dict)
    floor: Roofline | None = None

    def __post_init__(self) -> None:
        """Refuse calls of stages that were not timed."""
        if unknown := set(self.calls) - set(self.stages):
            raise EdgewamError(f"Calls are given for stages that were not timed: {sorted(unknown)}.")

    def share(self, name: str) -> float:
        """Part of the whole, by medians: calls * p50 of the stage / p50 of the total."""
        return self.calls.get(name, 1) * self.stages[name].p50_ms / self.total.p50_ms

    @property
    def rest_ms(self) -> float:
        """Median of the whole minus those of the stages: what runs between them.  Negative when timing them apart costs more."""
        return self.total.p50_ms - sum(self.calls.get(n, 1) * t.p50_ms for n, t in self.stages.items())

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        rows = {
            name: {"calls": self.calls.get(name, 1), "share": self.share(name), **timing.to_json()}
            for name, timing in self.stages.items()
        }
        return {
            "title": self.title,
            "contract": self.contract.to_json(),
            "total": self.total.to_json(),
            "stages": rows,
            "rest_ms": self.rest_ms,
            "floor": self.floor.to_json() if self.floor else None,
        }

    def text(self) -> str:
        """The table, with the contract as its head."""
        with_floor = self.floor is not None
        rows = [
            ["stage", "calls", "p50 ms", "p95", "p99", "max", "share", *(["floor", "x floor", "bound"] if with_floor else [])]
        ]
        for name, timing in self.stages.items():
            rows.append(self._row(name, self.calls.get(name, 1), timing, f"{self.share(name):.1%}"))
        if self.stages:
            rows.append(["(between)", "", f"{self.rest_ms:.3f}", "", "", "", f"{self.rest_ms / self.total.p50_ms:.1%}"])
        rows.append(self._row("total", 1, self.total, "100.0%"))
        return f"{self.title}\n{self.contract.text()}\n{table(rows)}"

    def _row(self, name: str, calls: int, timing: Timing, share: str) -> list[str]:
        row = [name, str(calls), *(f"{ms:.3f}" for ms in (timing.p50_ms, timing.p95_ms, timing.p99_ms, timing.max_ms)), share]
        if self.floor is not None:
            stage = self.floor.stage(name)
            floor_ms = self.floor.total_ms if name == "total" else stage.ms if stage else 0.0
            row += [f"{floor_ms:.3f}", f"{timing.p50_ms / floor_ms:.2f}", stage.bound if stage else ""] if floor_ms else []
        return row


def table(rows: list[list[str]]) -> str:
    """Plain text columns: the first left-aligned, the rest right-aligned, short rows padded; the first row is the head."""
    width = max(map(len, rows))
    full = [row + [""] * (width - len(row)) for row in rows]
    widths = [max(len(row[i]) for row in full) for i in range(width)]
    lines = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in full
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)

"""What a step is going to take, before it runs: the records behind `--dry-run`.

Numbers of bytes that follow from shapes are exact and are given part by part; times are estimates, each with its source.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_STATUS, _MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")

Parts = Mapping[str, int]  # what takes memory or disk -> bytes


@dataclass(frozen=True)
class Duration:
    """Seconds that a step is expected to take and where the number comes from; None where nobody can know."""

    seconds: float | None
    source: str


@dataclass(frozen=True)
class StepPlan:
    """One step of a plan.

    work: what is done, in words.  memory: moment -> parts that are there at once; the largest moment is the peak.
    disk: what stays on disk.  disk_extra: further bytes while it is written (a file is replaced only by a whole one).
    settled: why nothing is to be done, "" when there is.  notes: what the numbers leave out.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    work: str
    duration: Duration
    memory: Mapping[str, Parts] = field(default_factory=dict)
    disk: Parts = field(default_factory=dict)
    disk_extra: int = 0
    settled: str = ""
    notes: tuple[str, ...] = ()

    @property
    def peak_moment(self) -> str:
        """The moment that needs most memory; "" when nothing was counted."""
        return max(self.memory, key=lambda moment: sum(self.memory[moment].values()), default="")

    @property
    def peak_memory_bytes(self) -> int:
        """Bytes at that moment."""
        return sum(self.memory[self.peak_moment].values()) if self.memory else 0

    @property
    def disk_bytes(self) -> int:
        """Bytes that stay."""
        return sum(self.disk.values())

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        return {
            "name": self.name,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "work": self.work,
            "settled": self.settled,
            "seconds": self.duration.seconds,
            "seconds_source": self.duration.source,
            "peak_memory_bytes": self.peak_memory_bytes,
            "peak_moment": self.peak_moment,
            "memory": {moment: dict(parts) for moment, parts in self.memory.items()},
            "disk_bytes": self.disk_bytes,
            "disk": dict(self.disk),
            "disk_extra_bytes": self.disk_extra,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Totals:
    """Of several steps, one after the other.  seconds is None when one of them is unknown."""

    seconds: float | None
    peak_memory_bytes: int
    disk_bytes: int
    peak_disk_bytes: int

    @staticmethod
    def of(steps: Sequence[StepPlan]) -> Totals:
        """Add up what is still to be done: settled steps take nothing more."""
        todo = [step for step in steps if not step.settled]
        seconds = [step.duration.seconds for step in todo]
        kept, peak = 0, 0
        for step in todo:
            peak = max(peak, kept + step.disk_bytes + step.disk_extra)
            kept += step.disk_bytes
        total = None if None in seconds else float(sum(s for s in seconds if s is not None))
        return Totals(total, max((step.peak_memory_bytes for step in todo), default=0), kept, peak)

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        return dict(vars(self))


def plan_json(steps: Sequence[StepPlan]) -> dict[str, Any]:
    """What `--dry-run --json` prints."""
    return {"dry_run": True, "steps": [step.to_json() for step in steps], "total": Totals.of(steps).to_json()}


@dataclass(frozen=True)
class Line:
    """fixed + each * n, through two measurements."""

    fixed: float
    each: float

    @staticmethod
    def through(n_a: int, a: float, n_b: int, b: float) -> Line:
        """The line through (n_a, a) and (n_b, b) with n_a < n_b; it never falls, since more work never takes less."""
        each = max(0.0, (b - a) / (n_b - n_a))
        return Line(max(0.0, a - each * n_a), each)

    def at(self, n: float) -> float:
        """Value at n."""
        return self.fixed + self.each * n


def timed(run: Callable[[], object], calls: int = 2) -> float:
    """Seconds of the fastest of some calls: what else the machine does only ever adds."""
    found = []
    for _ in range(calls):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return min(found)


def timed_at(run: Callable[[int], object], size: int) -> float:
    """Seconds of `run(size)`, from two smaller sizes where it is large enough for that."""
    small, large = max(1, size // 8), max(1, size // 2)
    if small == large:
        return timed(lambda: run(size))
    return Line.through(small, timed(lambda: run(small)), large, timed(lambda: run(large))).at(size)


def timed_here() -> str:
    """The source of such a time, with a warning where other work slowed it down."""
    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    busy = f" while this machine was busy (load {load:.1f} on {cpus} CPUs)" if load > cpus else ""
    return f"timed here, now{busy}"


def process_bytes() -> int:
    """Resident memory of this process: Python and the libraries that the real step will load too; 0 where Linux does not tell."""
    return 1024 * _kilobytes(_STATUS, "VmRSS")


def available_bytes() -> int:
    """Memory that can be had without swapping; 0 where Linux does not tell."""
    return 1024 * _kilobytes(_MEMINFO, "MemAvailable")


def tree_bytes(path: Path) -> int:
    """Bytes of a file or of all files below a directory; 0 when it is not there."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _kilobytes(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)

"""How much memory each process of a run takes, sampled from /proc now and then, and how much it grew after it had warmed up.

Counters of the kernel only: nothing that would walk the page tables of the io process.
"""

from __future__ import annotations

from pathlib import Path

WARM_UP_S = 10.0  # caches, first frames and lazily loaded code belong to the start of a process
_MB = 1024  # /proc counts in kB


class MemoryWatch:
    """Samples by role.  A process that was started again begins anew, with its own first sample."""

    def __init__(self) -> None:
        self._pids: dict[str, int] = {}
        self._first: dict[str, tuple[float, float]] = {}
        self._last: dict[str, tuple[float, float]] = {}
        self._largest: dict[str, float] = {}

    def sample(self, role: str, pid: int, age_s: float) -> None:
        """Look at a process that has been running for `age_s`; one that is gone is left out."""
        found = resident_mb(pid)
        if found is None:
            return
        if self._pids.get(role) != pid or age_s < WARM_UP_S:
            self._pids[role], self._first[role] = pid, found
        self._last[role] = found
        self._largest[role] = max(self._largest.get(role, 0.0), found[0])

    def report(self) -> dict[str, dict[str, float]]:
        """Per role, in MB: resident memory `first` (warmed up), `last`, `max`; `own_first`, `own_last` without files and shared
        records; growth_percent and own_growth_percent from first to last.
        """
        return {
            role: {
                "first": round(first[0], 2),
                "last": round(self._last[role][0], 2),
                "max": round(self._largest[role], 2),
                "growth_percent": _growth(first[0], self._last[role][0]),
                "own_first": round(first[1], 2),
                "own_last": round(self._last[role][1], 2),
                "own_growth_percent": _growth(first[1], self._last[role][1]),
            }
            for role, first in self._first.items()
        }


def resident_mb(pid: int) -> tuple[float, float] | None:
    """(resident memory, its part that is neither a file nor shared) of a process in MB; None when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    sizes = {name: value for name, _, value in (line.partition(":") for line in lines)}
    if "VmRSS" not in sizes:  # ended, but not collected yet
        return None
    return _to_mb(sizes["VmRSS"]), _to_mb(sizes["RssAnon"])


def _to_mb(size: str) -> float:
    return int(size.split()[0]) / _MB


def _growth(first: float, last: float) -> float:
    return round(100.0 * (last - first) / first, 2) if first else 0.0

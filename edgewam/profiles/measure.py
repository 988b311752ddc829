"""Time a callable and summarise the samples: `measure(function, n, warmup) -> Timing`, in milliseconds.

Wall clock only (perf_counter_ns).  A function that starts work on another device must wait for it before it returns,
else the start is timed and not the work.  The garbage collector stays on: its pauses belong to the tail a robot sees.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from edgewam.core.errors import EdgewamError

Key = TypeVar("Key")


@dataclass(frozen=True)
class Timing:
    """Summary of `n` calls in milliseconds.  `samples_ms` holds every call in order when they were kept, else nothing.

    Percentiles interpolate linearly between order statistics (position (n - 1) * q), so p99 of few samples leans on the maximum.
    """

    n: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    mean_ms: float
    samples_ms: tuple[float, ...] = ()

    @staticmethod
    def from_samples(samples_ms: Iterable[float], keep: bool = False) -> Timing:
        """Summarise durations in milliseconds.

        Raises:
            EdgewamError: no samples, or a sample that is negative or not finite.
        """
        samples = np.fromiter(samples_ms, dtype=np.float64)
        if samples.size == 0:
            raise EdgewamError("A timing needs at least one sample; ask for n >= 1.")
        if not np.isfinite(samples).all() or samples.min() < 0:
            raise EdgewamError("A timing sample is negative or not finite: the clock or the caller that made it is wrong.")
        p50, p95, p99 = np.percentile(samples, (50, 95, 99))
        kept = tuple(samples.tolist()) if keep else ()
        return Timing(len(samples), float(p50), float(p95), float(p99), float(samples.max()), float(samples.mean()), kept)

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form; the samples are left out when they were not kept."""
        data = asdict(self)
        if self.samples_ms:
            data["samples_ms"] = list(self.samples_ms)
        else:
            del data["samples_ms"]
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Timing:
        """Inverse of `to_json`."""
        return Timing(**{**data, "samples_ms": tuple(data.get("samples_ms", ()))})

    def __str__(self) -> str:
        return f"p50 {self.p50_ms:.3f}  p95 {self.p95_ms:.3f}  p99 {self.p99_ms:.3f}  max {self.max_ms:.3f} ms (n={self.n})"


def measure(function: Callable[[], object], n: int, warmup: int = 10, keep: bool = False) -> Timing:
    """Call `function` `warmup` times untimed, then `n` times timed one by one.

    Args:
        function: takes no argument and returns only when its work is done (synchronise inside for a GPU).
        n: timed calls, at least 1.
        warmup: calls before the first timed one, at least 0.
        keep: keep every sample in `Timing.samples_ms`.

    Raises:
        EdgewamError: n or warmup out of range.
    """
    if n < 1 or warmup < 0:
        raise EdgewamError(f"measure needs n >= 1 and warmup >= 0, got n={n}, warmup={warmup}.")
    for _ in range(warmup):
        function()
    durations_ns = np.empty(n, dtype=np.int64)
    clock = time.perf_counter_ns
    for i in range(n):
        start = clock()
        function()
        durations_ns[i] = clock() - start
    return Timing.from_samples((durations_ns / 1e6).tolist(), keep)


def measure_interleaved(functions: Mapping[str, Callable[[], object]], n: int, warmup: int = 10) -> dict[str, Timing]:
    """Time several functions in turn, one call of each per round, so that drift of the machine hits all alike.

    Use it for every ratio: two blocks timed one after the other compare the machine's mood as much as the code.
    """
    if n < 1 or warmup < 0 or not functions:
        raise EdgewamError(f"measure_interleaved needs functions, n >= 1 and warmup >= 0, got n={n}, warmup={warmup}.")
    for _ in range(warmup):
        for function in functions.values():
            function()
    durations_ms: dict[str, list[float]] = {name: [] for name in functions}
    clock = time.perf_counter_ns
    for _ in range(n):
        for name, function in functions.items():
            start = clock()
            function()
            durations_ms[name].append((clock() - start) / 1e6)
    return {name: Timing.from_samples(samples) for name, samples in durations_ms.items()}


def measure_blocks(
    functions: Mapping[Key, Callable[[], object]], n: int, rounds: int = 10, warmup: int = 10, pause_s: float = 0.05
) -> dict[Key, Timing]:
    """Time several functions in blocks that take turns: `n` calls of each, in `rounds` blocks.

    For engines whose idle threads keep spinning for a while: a pause before each block lets those of the other one stop,
    some untimed calls warm the caches again.  Blocks still take turns, so that drift of the machine hits all alike.

    Raises:
        EdgewamError: fewer calls than rounds, or nothing to measure.
    """
    if n < rounds or rounds < 1 or warmup < 0 or not functions:
        raise EdgewamError(f"n ({n}) must be at least the number of rounds ({rounds}), and that at least 1.")
    durations_ms: dict[Key, list[float]] = {name: [] for name in functions}
    clock = time.perf_counter_ns
    for index in range(rounds):
        block = n // rounds + (index < n % rounds)
        for name, function in functions.items():
            time.sleep(pause_s)
            for _ in range(warmup if index == 0 else min(3, warmup)):
                function()
            for _ in range(block):
                start = clock()
                function()
                durations_ms[name].append((clock() - start) / 1e6)
    return {name: Timing.from_samples(samples) for name, samples in durations_ms.items()}

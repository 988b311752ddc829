"""A trace of some runs as Chrome and Perfetto read it: one track per program, one event per stage, microseconds.

JSON object format of the Trace Event Format: `traceEvents` with complete events (`ph` "X": name, ts, dur, pid, tid) and
metadata (`ph` "M") that names process and tracks; `otherData` carries the timing contracts and the totals.  Looking at every
stage costs a little, so figures come from `measure` and a trace shows where the time lies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgewam.core.errors import EdgewamError
from edgewam.profiles.contract import TimingContract

_PID = 1


class Traced(Protocol):
    """What runs: `on_stage(name, nanoseconds)` is called right after every stage while it is set."""

    on_stage: Callable[[str, int], None] | None


@dataclass(frozen=True)
class Span:
    """One stage of one run, nanoseconds of the monotonic clock."""

    name: str
    run: int
    start_ns: int
    duration_ns: int


@dataclass(frozen=True)
class ProgramTrace:
    """All stages of some runs of one program, in order, and how long each run took as a whole."""

    program: str
    contract: TimingContract
    spans: tuple[Span, ...]
    run_ns: tuple[int, ...]

    def stage_ms(self) -> dict[str, float]:
        """Stage -> sum over all runs."""
        sums: dict[str, int] = {}
        for span in self.spans:
            sums[span.name] = sums.get(span.name, 0) + span.duration_ns
        return {name: ns / 1e6 for name, ns in sums.items()}


def record(pipeline: Traced, run: Callable[[], object], runs: int, warmup: int = 3) -> tuple[list[Span], list[int]]:
    """Stages and durations of `runs` runs, after `warmup` that are not kept.

    Raises:
        EdgewamError: fewer than one run.
    """
    if runs < 1 or warmup < 0:
        raise EdgewamError(f"A trace needs at least one run and no negative warm-up, got {runs} and {warmup}.")
    spans: list[Span] = []
    durations: list[int] = []

    def look(name: str, nanoseconds: int) -> None:
        spans.append(Span(name, len(durations), time.perf_counter_ns() - nanoseconds, nanoseconds))

    for _ in range(warmup):
        run()
    pipeline.on_stage = look
    try:
        for _ in range(runs):
            start = time.perf_counter_ns()
            run()
            durations.append(time.perf_counter_ns() - start)
    finally:
        pipeline.on_stage = None
    return spans, durations


def chrome_trace(title: str, traces: Sequence[ProgramTrace]) -> dict[str, Any]:
    """The whole file as plain JSON; time 0 is the first event."""
    zero = min((span.start_ns for trace in traces for span in trace.spans), default=0)
    events: list[dict[str, Any]] = [_name("process_name", 0, title)]
    for track, trace in enumerate(traces, 1):
        events.append(_name("thread_name", track, f"program {trace.program}"))
        # tracks in the order in which they were recorded, not by name
        events.append({"name": "thread_sort_index", "ph": "M", "pid": _PID, "tid": track, "args": {"sort_index": track}})
        events += [
            {
                "name": span.name, "cat": trace.program, "ph": "X", "pid": _PID, "tid": track,
                "ts": (span.start_ns - zero) / 1e3, "dur": span.duration_ns / 1e3, "args": {"run": span.run},
            }
            for span in trace.spans
        ]  # fmt: skip
    programs: Mapping[str, Any] = {
        trace.program: {
            "contract": trace.contract.to_json(),
            "run_ms": [ns / 1e6 for ns in trace.run_ns],
            "stage_ms": trace.stage_ms(),
        }
        for trace in traces
    }
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"title": title, "clock": "monotonic", "programs": programs},
    }


def _name(kind: str, track: int, value: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": _PID, "tid": track, "args": {"name": value}}

"""L_chunk while the planner refreshes: the load of DESIGN section 7, the same chunks without it, and as fast as they go.

idle       chunks at a fixed rate, no refresh
load       the same with a refresh every second chunk on the second stream; each has two ticks (40 ms) to be done
saturated  chunks back to back beside refreshes back to back

One thread serves both, as the engine process does.  L_chunk is from the call to the actions on the host, `from_due` from
the tick at which the chunk was due.  A late tick is skipped and counted; a refresh that is not done when the next one is due
is counted as late, and that next one is left out.  A refresh is looked for between chunks, so it may be seen done a little late.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.jobs import Emit, Job
from benchmarks.gpu.policy import Figures, Policy, shared_policy
from benchmarks.gpu.program_timing import contract, robot_pipeline
from benchmarks.results import Section
from edgewam.profiles.measure import Timing
from edgewam.runtime.pipeline import Pipeline

POLL_S = 2e-4  # between looks at a refresh while there is nothing else to do
SPIN_S = 1e-3  # before a tick the clock is watched instead of slept through


def run(job: Job, device: str, emit: Emit) -> None:
    """Sections `idle`, `load`, `saturated`."""
    policy = shared_policy(job, device)
    pipeline, graphs = robot_pipeline(policy)
    for name, section in load_sections(policy, pipeline, graphs, job.params, f"{policy.compiler}, CUDA graphs"):
        emit(name, section)


def load_sections(
    policy: Policy, pipeline: Pipeline, graphs: Mapping[str, Figures], p: Mapping[str, Any], engine: str
) -> Iterator[tuple[str, Section]]:  # fmt: skip
    """What `run` records, of any pipeline that runs `act` beside `plan`; each as it is measured."""
    for name, chunks, every in (("idle", p["idle_chunks"], 0), ("load", p["chunks"], 2), ("saturated", p["saturated_chunks"], 1)):
        seen = _Loop(policy, pipeline, p["hz"] if name != "saturated" else 0.0, every).run(chunks)
        figures = seen.figures() | {"hz": float(p["hz"]) if name != "saturated" else "back to back", **graphs["act"]}
        programs, notes = ("act", "plan")[: 1 + (every > 0)], f"{name}: one thread, {WHAT[name]}"
        made = contract(policy, engine, 2, programs, len(seen.chunk_ms), 0, notes, every > 0)
        yield name, Section(made, figures, seen.timings())


WHAT = {
    "idle": "paced chunks alone",
    "load": "paced chunks, a refresh every second one",
    "saturated": "chunks and refreshes back to back",
}


@dataclass
class _Loop:
    """One run of the loop and what was seen.  hz 0: back to back.  every: a refresh every so many chunks, 0 for none."""

    policy: Policy
    pipeline: Pipeline
    hz: float
    every: int
    chunk_ms: list[float] = field(default_factory=list)
    from_due_ms: list[float] = field(default_factory=list)
    refresh_ms: list[float] = field(default_factory=list)
    late_refreshes: int = 0
    skipped_ticks: int = 0
    _started: float | None = None  # of the refresh under way

    def run(self, chunks: int) -> _Loop:
        """Ask for `chunks` chunks."""
        act, number = self.policy.act_inputs(), self.policy.config.memory_slots
        period = 1 / self.hz if self.hz else 0.0
        begin, tick = time.perf_counter() + period, 0
        while len(self.chunk_ms) < chunks:
            due = begin + tick * period if period else time.perf_counter()
            self._wait_until(due)
            start = time.perf_counter()
            self.pipeline.start("act", act)
            if self.every and tick % self.every == 0:
                number += self._refresh(number)
            self.pipeline.finish("act")
            end = time.perf_counter()
            self.chunk_ms.append((end - start) * 1e3)
            self.from_due_ms.append((end - due) * 1e3)
            self._look()
            tick += 1
            if period and (missed := int((time.perf_counter() - begin) / period) - tick + 1) > 0:
                self.skipped_ticks += missed
                tick += missed
        while self._started is not None:
            self._look()
        return self

    def figures(self) -> dict[str, float | int | str | bool | None]:
        """Counts; a refresh is in time within two ticks."""
        out: dict[str, float | int | str | bool | None] = {"skipped_ticks": self.skipped_ticks, "refreshes": len(self.refresh_ms)}
        if self.hz and self.every:
            limit = 1e3 * self.every / self.hz
            late = sum(ms > limit for ms in self.refresh_ms)
            out |= {"refresh_limit_ms": limit, "refreshes_over_limit": late, "refreshes_left_out": self.late_refreshes}
        return out

    def timings(self) -> dict[str, Timing]:
        """Chunks, chunks from their tick, refreshes."""
        samples = {"L_chunk": self.chunk_ms, "from_due": self.from_due_ms, "refresh": self.refresh_ms}
        return {name: Timing.from_samples(values) for name, values in samples.items() if values}

    def _refresh(self, number: int) -> int:
        """Start a refresh unless one is still under way; returns how many were started."""
        self._look()
        if self._started is not None:
            self.late_refreshes += self.hz > 0
            return 0
        self._started = time.perf_counter()
        self.pipeline.start("plan", self.policy.plan_inputs(number))
        return 1

    def _look(self) -> None:
        if self._started is not None and self.pipeline.is_done("plan"):
            self.pipeline.finish("plan")
            self.refresh_ms.append((time.perf_counter() - self._started) * 1e3)
            self._started = None

    def _wait_until(self, due: float) -> None:
        while (left := due - time.perf_counter()) > 0:
            self._look()
            if left > SPIN_S:
                time.sleep(min(POLL_S, left - SPIN_S) if self._started is not None else left - SPIN_S)

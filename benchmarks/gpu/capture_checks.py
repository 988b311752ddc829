"""What a captured program promises: replays allocate nothing and starting one never waits for the device.

That a replay computes the same is checked when it is captured.  A broken promise fails the job.  On a processor there are no
graphs, and the sections say so.
"""

from __future__ import annotations

import time

import torch

from benchmarks.gpu.jobs import Emit, Job
from benchmarks.gpu.policy import Policy, shared_policy
from benchmarks.gpu.program_timing import FIGURES, contract, robot_pipeline
from benchmarks.results import Section
from edgewam.profiles.measure import Timing
from edgewam.runtime.memory import Array
from edgewam.runtime.pipeline import Pipeline


def run(job: Job, device: str, emit: Emit) -> None:
    """Sections `act` and `plan`; timing `start` is the host's part of a run."""
    policy, n = shared_policy(job, device), job.params["n"]
    pipeline, found = robot_pipeline(policy)
    cases = {"act": policy.act_inputs(), "plan": policy.plan_inputs(policy.config.memory_slots)}
    for program, inputs in cases.items():
        starts, allocations = _watched(pipeline, program, inputs, n, policy)
        figures = {**found[program], "allocations": allocations, "waits_in_start": 0 if device != "cpu" else "not watched"}
        made = contract(policy, f"{policy.compiler}, CUDA graphs", 2, (program,), n, 2, f"host's part of {FIGURES[program]}")
        emit(program, Section(made, figures, {"start": starts}))


def _watched(pipeline: Pipeline, program: str, inputs: dict[str, Array], n: int, policy: Policy) -> tuple[Timing, int | str]:
    """Time `start` in `n` runs; on a GPU every wait inside raises, and allocations are counted."""
    for _ in range(2):
        pipeline.run(program, inputs)
    on_gpu = policy.device != "cpu"
    counted = _num_allocations() if on_gpu else 0
    samples = []
    for _ in range(n):
        if on_gpu:
            torch.cuda.set_sync_debug_mode("error")
        try:
            start = time.perf_counter()
            pipeline.start(program, inputs)
            samples.append((time.perf_counter() - start) * 1e3)
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
        pipeline.finish(program)
    if not on_gpu:
        return Timing.from_samples(samples), "not counted"
    allocations = _num_allocations() - counted
    assert allocations == 0, f"{n} runs of '{program}' allocated {allocations} times"
    return Timing.from_samples(samples), allocations


def _num_allocations() -> int:
    return int(torch.cuda.memory_stats()["allocation.all.allocated"])

"""L_chunk through our kernels while the planner refreshes: the load of `under_load`, with the gates of issue 7.

Gates: p99 under load at most 1.3 times the median without a refresh, and every refresh done within two ticks (40 ms).
"""

from __future__ import annotations

from benchmarks.gpu.fused_policy import fused_policy
from benchmarks.gpu.jobs import Emit, Job
from benchmarks.gpu.policy import shared_policy
from benchmarks.gpu.program_timing import capture
from benchmarks.gpu.under_load import load_sections
from benchmarks.results import Section

P99_OVER_IDLE = 1.3
STEPS = 2


def run(job: Job, device: str, emit: Emit) -> None:
    """Sections `<format>_idle`, `<format>_load`, `<format>_saturated`."""
    policy, p = shared_policy(job, device), job.params
    fused = fused_policy(policy, p)
    for format in p["formats"]:
        pipeline = fused.pipeline(fused.stages(format), STEPS, overlap=True)
        cases = {"act": policy.act_inputs(), "plan": policy.plan_inputs(policy.config.memory_slots)}
        graphs = {program: capture(pipeline, program, inputs) for program, inputs in cases.items()}
        idle_ms = 0.0
        for name, section in load_sections(policy, pipeline, graphs, p, f"fused kernels, weights {format}, CUDA graphs"):
            if name == "idle":
                idle_ms = section.timings["L_chunk"].p50_ms
            emit(f"{format}_{name}", gated(section, idle_ms) if name == "load" else section)


def gated(section: Section, idle_ms: float) -> Section:
    """The section under load with its gates."""
    ratio = section.timings["L_chunk"].p99_ms / idle_ms
    late = int(section.figures["refreshes_over_limit"] or 0) + int(section.figures["refreshes_left_out"] or 0)
    figures = {"p99_over_idle": ratio, "gate_p99_over_idle": P99_OVER_IDLE, "gate_passed": ratio <= P99_OVER_IDLE and late == 0}
    return Section(section.contract, {**section.figures, **figures}, section.timings)

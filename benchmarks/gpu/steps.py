"""The paper's Table 11 for this card: 10, 4, 2 and 1 steps of the best rung, one build of stages, and the gates of issue 4.

Gates are recorded as figures, not asserted: a card that misses one still has its numbers.
"""

from __future__ import annotations

from benchmarks.gpu.jobs import Emit, Job
from benchmarks.gpu.policy import shared_policy
from benchmarks.gpu.program_timing import capture, program_section
from benchmarks.results import Section

GATES = {"chunk_2": 4.0, "prefill": 3.0}  # section -> times its floor at most


def run(job: Job, device: str, emit: Emit) -> None:
    """Sections `chunk_<steps>` in the order given, then `prefill` with a full memory."""
    policy, p = shared_policy(job, device), job.params
    engines = policy.engines()

    def gated(name: str, section: Section) -> None:
        gate = GATES.get(name)
        extra = {} if gate is None else {"gate_x_floor": gate, "gate_passed": float(section.figures["x_floor"]) <= gate}  # type: ignore[arg-type]
        emit(name, Section(section.contract, {**section.figures, **extra}, section.timings))

    for steps in p["steps"]:
        pipeline = policy.pipeline(steps)
        found = capture(pipeline, "act", policy.act_inputs())
        engine = f"{policy.compiler}, one CUDA graph"
        section = program_section(
            policy, pipeline, "act", engine, p["n"], p["warmup"], "exact rewrites", found,
            engines=engines if steps == p["steps"][0] else None, steps=steps,
        )  # fmt: skip
        gated(f"chunk_{steps}", section)
    found = capture(pipeline, "plan", policy.plan_inputs(policy.config.memory_slots), one_graph=True)
    section = program_section(
        policy, pipeline, "plan", f"{policy.compiler}, one CUDA graph before the push", p["refreshes"], p["warmup"],
        "exact rewrites", found, engines=engines,
    )  # fmt: skip
    gated("prefill", section)

"""The paper's Table 9 for this card: ways to run the planner refresh, and what each does to the chunk that is wanted meanwhile.

L_prefill is a refresh alone.  L_chunk_beside is a chunk asked for in the moment in which a refresh is started, from that moment
to its actions, with one thread that serves both: launching the refresh call by call is inside.  Chunks are graphs throughout.
"""

from __future__ import annotations

import time

from benchmarks.gpu.floors import program_floor
from benchmarks.gpu.jobs import Emit, Job
from benchmarks.gpu.policy import shared_policy
from benchmarks.gpu.program_timing import capture, contract, floor_figures, robot_pipeline
from benchmarks.gpu.rates import measured_device
from benchmarks.results import Section
from edgewam.core.program import Call
from edgewam.profiles.measure import Timing, measure
from edgewam.runtime.pipeline import Pipeline

# name -> (the refresh is compiled, captured, as one graph)
MODES = {
    "eager": (False, False, False),
    "compile": (True, False, False),
    "one_graph": (True, True, True),
    "groups": (True, True, False),
}
WHAT = {
    "eager": "our planner as it is, call by call, image encoder compiled",
    "compile": "compiled stages call by call",
    "one_graph": "compiled stages, one graph on a stream of low priority",
    "groups": "compiled stages, one graph per group of layers on a stream of low priority",
}


def run(job: Job, device: str, emit: Emit) -> None:
    """One section per mode."""
    policy, p = shared_policy(job, device), job.params
    inputs, act = policy.plan_inputs(policy.config.memory_slots), policy.act_inputs()
    for name, (is_compiled, captured, one_graph) in MODES.items():
        if captured and not one_graph:
            pipeline, graphs = robot_pipeline(policy)
        else:
            pipeline = policy.pipeline(2, eager=() if is_compiled else policy.planner, overlap=True)
            graphs = {"act": capture(pipeline, "act", act)}
            if captured:
                graphs["plan"] = capture(pipeline, "plan", inputs, one_graph)
        alone = measure(lambda pipeline=pipeline: pipeline.run("plan", inputs), p["n"], p["warmup"])  # type: ignore[misc]
        chunk = measure(lambda pipeline=pipeline: pipeline.run("act", act), p["n"], p["warmup"])  # type: ignore[misc]
        for _ in range(p["warmup"]):
            _beside(pipeline, inputs, act)
        beside = Timing.from_samples([_beside(pipeline, inputs, act) for _ in range(p["n"])])
        program = pipeline.programs.programs["plan"]
        floor = program_floor(program, policy.stages(), measured_device(device))
        stages = tuple(step.stage for step in program.steps() if isinstance(step, Call))
        figures = floor_figures(floor, alone) | {
            f"{key}_{program}": value for program, found in graphs.items() for key, value in found.items()
        }
        figures |= {"chunk_slowed_by": beside.p50_ms / chunk.p50_ms}
        made = contract(policy, f"{policy.compiler}: {WHAT[name]}", 2, stages, p["n"], p["warmup"], f"mode {name}", refresh=True)
        emit(name, Section(made, figures, {"L_prefill": alone, "L_chunk": chunk, "L_chunk_beside": beside}))


def _beside(pipeline: Pipeline, refresh: dict, act: dict) -> float:
    start = time.perf_counter()
    pipeline.start("plan", refresh)
    pipeline.run("act", act)
    chunk_ms = (time.perf_counter() - start) * 1e3
    pipeline.finish("plan")
    return chunk_ms

"""Figures of a pipeline's programs: the call that a robot makes, each stage alone on the device, and the floor beside both."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from benchmarks.gpu.floors import program_floor
from benchmarks.gpu.gpu_clock import gpu_contract, time_device
from benchmarks.gpu.policy import Figures, Policy
from benchmarks.gpu.rates import measured_device
from benchmarks.results import Section
from edgewam.core.program import Call
from edgewam.core.stage import Stage
from edgewam.profiles.contract import TimingContract
from edgewam.profiles.measure import Timing, measure
from edgewam.profiles.roofline import Roofline
from edgewam.runtime.engine import Engine
from edgewam.runtime.memory import Array, CaptureError, Memory
from edgewam.runtime.pipeline import Pipeline
from edgewam.runtime.torch_memory import TorchMemory

GIB = 2**30
NO_GRAPHS: Figures = {"graph": "none: a processor has no graphs"}
NOT_CAPTURED: Figures = {"graph": "not captured"}
# Of a result's maximum, for a graph that misses what the product allows (`runtime/replay.py`): a library may sum in another
# order while it is captured, which bf16 shows after 30 layers of random weights.  Stale addresses give 1 or more.
SAME_REPLAY = 0.05
FIGURES = {"act": "L_chunk", "plan": "L_prefill"}


def capture(pipeline: Pipeline, program: str, inputs: Mapping[str, Array], one_graph: bool = False) -> Figures:
    """Capture a program; figures `graph`, how well its replay agrees, and whether that is as well as a bundle's graphs must.

    A graph that the product would refuse is kept, and marked, up to `SAME_REPLAY`: its time is worth knowing.  Without graphs
    here, `graph` says so.

    Raises:
        CaptureError: on a GPU, why it is not possible: then the figure would not be what its name says.
    """
    if not has_graphs(pipeline.memory):
        return NO_GRAPHS
    try:
        return {"graph": pipeline.capture(program, inputs, one_graph), "graph_within_product_limit": True}
    except CaptureError as error:
        print(f"{program}: {error}; tried again with {SAME_REPLAY}", flush=True)
    return {"graph": pipeline.capture(program, inputs, one_graph, SAME_REPLAY), "graph_within_product_limit": False}


def robot_pipeline(policy: Policy) -> tuple[Pipeline, dict[str, Figures]]:
    """The pipeline as a robot runs it: two steps, `act` beside `plan`, both captured; and the figures of `capture` of each.

    Made once per policy: capturing a refresh moves its memory to the host and back, which takes seconds.
    """
    if policy.robot is None:
        pipeline = policy.pipeline(2, overlap=True)
        cases = {"act": policy.act_inputs(), "plan": policy.plan_inputs(policy.config.memory_slots)}
        policy.robot = pipeline, {program: capture(pipeline, program, inputs) for program, inputs in cases.items()}
    return policy.robot


def has_graphs(memory: Memory) -> bool:
    """Whether a memory can hold calls as a graph."""
    return isinstance(memory, TorchMemory) and memory.on_gpu


def program_section(
    policy: Policy, pipeline: Pipeline, program: str, engine: str, n: int, warmup: int, notes: str,
    captured: Figures = NOT_CAPTURED, stages: Mapping[str, Stage] | None = None, engines: Mapping[str, Engine] | None = None,
    steps: int = 0,
) -> Section:  # fmt: skip
    """Wall clock of whole runs, the floor of the plan that ran and their ratio; with `engines` also each stage alone."""
    inputs = policy.act_inputs() if program == "act" else policy.plan_inputs(policy.config.memory_slots)
    wall = measure(lambda: pipeline.run(program, inputs), n, warmup)
    stages = stages or policy.stages()
    declared = pipeline.programs.programs[program]
    floor = program_floor(declared, stages, measured_device(policy.device))
    names = tuple(dict.fromkeys(step.stage for step in declared.steps() if isinstance(step, Call)))
    timings = {FIGURES[program]: wall}
    figures = floor_figures(floor, wall) | dict(captured) | peak(policy.device)
    for name in names if engines is not None else ():
        try:
            timings[name] = stage_alone(stages[name], engines[name], policy.memory, n, warmup)
        except Exception as error:  # the figure of the whole must not be lost for one of its parts
            figures[f"{name}_alone_failed"] = f"{type(error).__name__}: {error}"[:200]
    return Section(contract(policy, engine, steps, names, wall.n, warmup, notes), figures, timings)


def stage_alone(stage: Stage, engine: Engine, memory: TorchMemory, n: int, warmup: int) -> Timing:
    """Device time of one stage on random inputs: a graph of it, where there are graphs, replayed back to back."""
    inputs, outputs = ({spec.name: memory.allocate(spec) for spec in specs} for specs in (stage.inputs, stage.outputs))
    for buffer in inputs.values():
        if buffer.is_floating_point():
            buffer.normal_()  # zeros run faster than data
        elif buffer.dtype == torch.uint8:
            buffer.random_()
    call = engine.bind(inputs, outputs)
    if not has_graphs(memory):
        return time_device(call, "cpu", n, warmup)
    memory.synchronize()
    stream = memory.stream()
    with memory.on(stream):
        call()
        replay = memory.capture([call], stream)
        return time_device(replay, memory.device.type, n, warmup)


def floor_figures(floor: Roofline, wall: Timing) -> dict[str, float | int | str | bool | None]:
    """Floor, ratio, and the floors of one call of each stage."""
    return {
        "floor_ms": floor.total_ms,
        "x_floor": wall.p50_ms / floor.total_ms,
        **{f"floor_ms_{stage.name}": stage.ms for stage in floor.stages},
    }


def peak(device: str) -> dict[str, float | int | str | bool | None]:
    """Most memory since `reset_peak`: of tensors, and of everything that torch holds, graphs included."""
    if device == "cpu":
        return {}
    taken, held = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"memory_peak_gib": taken / GIB, "memory_reserved_gib": held / GIB}


def reset_peak(device: str) -> None:
    """Give back what nothing uses, and count peaks anew."""
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def contract(
    policy: Policy, engine: str, steps: int, names: tuple[str, ...], n: int, warmup: int, notes: str, refresh: bool = False
) -> TimingContract:  # fmt: skip
    """The contract of a figure of the random policy."""
    made = gpu_contract(
        policy.device, engine=engine, precision=str(policy.dtype).removeprefix("torch."), steps=steps, shapes=policy.shapes,
        stages=names, host_copies=True, warmup=warmup, n=n, clock="wall",
        notes=f"random weights; stages alone by device events; {notes}",
    )  # fmt: skip
    return TimingContract.from_json(made.to_json() | {"concurrent_refresh": refresh})


def relative(actions: Array, reference: Array) -> float:
    """RMS of the difference over the RMS of the reference; NaN in either is refused."""
    assert np.isfinite(actions).all() and np.abs(actions).max() > 0, "the actions are not numbers or nothing"
    return float(np.sqrt(np.mean((actions - reference) ** 2) / np.mean(reference**2)))

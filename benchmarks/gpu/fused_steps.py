"""The action chunk through our kernels: 10, 4, 2 and 1 steps and the refresh, in every weight format, with the gates of issue 7.

In one process and in this order: the release as it is at 10 steps, ours in every format, and last, because it compiles for a
minute, Inductor with a CUDA graph at equal steps, in turns with ours.  Gates are recorded as figures, not asserted.
"""

from __future__ import annotations

import traceback

from benchmarks.gpu.fused_policy import FusedPolicy, fused_policy
from benchmarks.gpu.jobs import Emit, Job
from benchmarks.gpu.policy import CHUNK, Figures, Policy, forget_policy, shared_policy
from benchmarks.gpu.program_timing import FIGURES, capture, contract, peak, program_section, reset_peak
from benchmarks.gpu.upstream import UpstreamEager
from benchmarks.results import Section
from edgewam.profiles.measure import measure, measure_interleaved
from edgewam.runtime.pipeline import Pipeline

# of the chunk at 2 steps on a card of H100's class: (milliseconds, times its floor) at most
GATES = {"bf16": (3.5, 2.0), "fp8": (2.4, 2.6)}
GATED_STEPS = 2
FASTER_THAN_INDUCTOR = 2.0
ENGINE = "fused kernels, one CUDA graph"


class FormatError(RuntimeError):
    """Some formats failed; the others are recorded."""


def run(job: Job, device: str, emit: Emit) -> None:
    """Sections `upstream_eager_<n>`; `<format>_chunk_<steps>`, `.._prefill` and `.._cosine`; `inductor_chunk_<steps>`."""
    p, policy, failed = job.params, shared_policy(job, device), []
    if not policy.has_network:
        forget_policy()
        policy = shared_policy(job, device)
    released = upstream_section(policy, p["eager_steps"], p["n_eager"])
    emit(f"upstream_eager_{p['eager_steps']}", released)
    fused = fused_policy(policy, p)
    for format in p["formats"]:
        try:
            reset_peak(device)
            _format(job, fused, format, released.timings["L_chunk"].p50_ms, emit)
        except Exception as error:  # each format stands for itself
            traceback.print_exc()
            failed.append(f"{format}: {error}")
    for steps in p["inductor_steps"]:
        emit(f"inductor_chunk_{steps}", beside_inductor(fused, steps, p["n"], p["warmup"]))
    if failed:
        raise FormatError("; ".join(failed))


def upstream_section(policy: Policy, steps: int, n: int) -> Section:
    """The release step by step, before our stages take its weights."""
    upstream, inputs = UpstreamEager(*policy.network), policy.inputs
    for number in range(policy.config.memory_slots):
        upstream.refresh(inputs.image, policy.text, policy.frame_id(number))
    wall = measure(lambda: upstream.act(inputs.image, inputs.proprio, policy.text, inputs.noise, CHUNK, steps), n, 1)
    return Section(contract(policy, "PyTorch eager, as released", steps, ("act",), n, 1, "upstream_eager"), {}, {"L_chunk": wall})


def _format(job: Job, fused: FusedPolicy, format: str, released_ms: float, emit: Emit) -> None:
    """All step counts and the refresh in one format, and how near its stages are to the plain ones."""
    p, policy = job.params, fused.policy
    stages = fused.stages(format)
    declared, engines = fused.declared(stages), fused.engines(stages)
    unsupported = _not_lowered(fused)
    for steps in p["steps"]:
        pipeline = policy.filled(engines, steps)
        found = capture(pipeline, "act", policy.act_inputs())
        parts = engines if steps == p["steps"][0] else None
        section = program_section(
            policy, pipeline, "act", ENGINE, p["n"], p["warmup"], f"weights {format}", found, declared, parts, steps
        )  # fmt: skip
        ratio = {f"release_at_{p['eager_steps']}_steps_over_this": released_ms / section.timings[FIGURES["act"]].p50_ms}
        figures = {**section.figures, **gate_figures(format, steps, section), **ratio, **per_layer(fused, section), **unsupported}
        emit(f"{format}_chunk_{steps}", Section(section.contract, figures, section.timings))
    found = capture(pipeline, "plan", policy.plan_inputs(policy.config.memory_slots), one_graph=True)
    section = program_section(
        policy, pipeline, "plan", ENGINE, p["refreshes"], p["warmup"], f"weights {format}", found, declared, engines
    )  # fmt: skip
    emit(f"{format}_prefill", section)
    cosines = fused.cosines(stages)
    figures = {"cosine_min": min(cosines.values())} | {f"cosine_{name}": value for name, value in cosines.items()}
    made = contract(
        policy, "fused kernels", 0, tuple(stages), 1, 0, f"weights {format}; real inputs of every stage, against eager"
    )
    emit(f"{format}_cosine", Section(made, figures | peak(policy.device)))


def gate_figures(format: str, steps: int, section: Section) -> Figures:
    """The gates of a chunk and whether it meets both; nothing where there is none."""
    if format not in GATES or steps != GATED_STEPS:
        return {}
    most_ms, most = GATES[format]
    passed = section.timings[FIGURES["act"]].p50_ms <= most_ms and float(section.figures["x_floor"] or 0.0) <= most
    return {"gate_ms": most_ms, "gate_x_floor": most, "gate_passed": passed}


def per_layer(fused: FusedPolicy, section: Section) -> Figures:
    """Microseconds of one layer of each stage that has layers, where stages were timed alone."""
    layers = fused.policy.config.num_layers
    groups = len(fused.policy.planner)
    counts = {"denoise": layers, **dict.fromkeys(fused.policy.planner, layers // groups)}
    return {f"us_per_layer_{n}": section.timings[n].p50_ms * 1e3 / count for n, count in counts.items() if n in section.timings}


def beside_inductor(fused: FusedPolicy, steps: int, n: int, warmup: int) -> Section:
    """Inductor and our kernels in bf16, both as one graph, in turns; the refresh is not part of it."""
    policy = fused.policy
    plain = policy.pipeline(steps, eager=policy.planner)
    pipelines: dict[str, Pipeline] = {"inductor": plain, "fused": fused.pipeline(fused.stages("bf16"), steps)}
    inputs = policy.act_inputs()
    graphs = {f"graph_{name}": capture(each, "act", inputs)["graph"] for name, each in pipelines.items()}
    timings = measure_interleaved(
        {name: lambda each=each: each.run("act", inputs) for name, each in pipelines.items()}, n, warmup
    )  # type: ignore[misc]
    ratio = timings["inductor"].p50_ms / timings["fused"].p50_ms
    figures = {
        "fused_is_faster_by": ratio, "gate_faster_by": FASTER_THAN_INDUCTOR, "gate_passed": ratio >= FASTER_THAN_INDUCTOR,
        "compile_s": sum(policy.compile_s.values()), **graphs,
    }  # fmt: skip
    made = contract(policy, f"{policy.compiler} and fused kernels, CUDA graphs, in turns", steps, ("act",), n, warmup, "bf16")
    return Section(made, figures, timings)


def _not_lowered(fused: FusedPolicy) -> Figures:
    """Stages that stay programs, and why."""
    return {f"not_lowered_{name}": why[:120] for name, why in fused.refused.items()}

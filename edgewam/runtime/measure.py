"""Timings of an opened bundle: every program as a whole and stage by stage, each under its timing contract (DESIGN 7).

The whole is timed with the stage hook off, the stages in runs of their own, so that the figure people quote holds no
measuring.  Inputs are the bundle's golden ones, or those that the policy itself would feed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgewam.core import plugins
from edgewam.core.errors import ArtifactError
from edgewam.core.program import Call
from edgewam.profiles.contract import TimingContract
from edgewam.profiles.measure import Timing, measure
from edgewam.profiles.report import Profile
from edgewam.runtime.bundle import GOLDEN, Bundle
from edgewam.runtime.memory import Array
from edgewam.runtime.pipeline import Pipeline
from edgewam.runtime.selftest import load_golden


def profile_bundle(bundle: Bundle, n: int = 200, warmup: int = 20, programs: Sequence[str] | None = None) -> dict[str, Profile]:
    """Profiles by name: one per program, and `L_chunk`, `L_prefill`, `L_compose` where the bundle has a policy.

    Args:
        bundle: opened from a directory (its golden vectors are the inputs).
        n: timed runs of each figure, at least 1.
        warmup: untimed runs before.
        programs: only these; all by default.

    Raises:
        ArtifactError: a bundle that was never written.
    """
    if bundle.path is None or bundle.manifest is None:
        raise ArtifactError("Only a bundle that was opened from a directory can be profiled. Write it with 'edgewam compile'.")
    inputs = {call.program: call.inputs for call in load_golden(bundle.path / GOLDEN, bundle.manifest.config["golden"])}
    chosen = [name for name in inputs if programs is None or name in programs]
    profiles = {name: _profile_program(bundle, name, inputs[name], n, warmup) for name in chosen}
    if bundle.policy is not None and programs is None:
        policy = plugins.load("policy", bundle.policy)
        for name, function in policy.timed_calls(bundle).items():
            total = measure(function, n, warmup)
            contract = contract_of(bundle, name, policy.FIGURE_PROGRAMS.get(name), n, warmup)  # reads the clocks of now
            profiles[name] = Profile(f"{bundle.family} {name}", contract, total)
    bundle.pipeline.reset()
    return profiles


def stage_timings(pipeline: Pipeline, run: Callable[[], object], n: int, warmup: int) -> tuple[dict[str, Timing], dict[str, int]]:
    """Timing of one call of each step that `run` makes, and how often it makes it."""
    samples: dict[str, list[float]] = {}
    for _ in range(warmup):
        run()
    pipeline.on_stage = lambda name, nanoseconds: samples.setdefault(name, []).append(nanoseconds / 1e6)
    try:
        for _ in range(n):
            run()
    finally:
        pipeline.on_stage = None
    return {name: Timing.from_samples(s) for name, s in samples.items()}, {name: len(s) // n for name, s in samples.items()}


def _profile_program(bundle: Bundle, name: str, inputs: Mapping[str, Array], n: int, warmup: int) -> Profile:
    def run() -> None:
        bundle.pipeline.run(name, inputs)

    total = measure(run, n, warmup)
    stages, calls = stage_timings(bundle.pipeline, run, n, warmup=1)
    return Profile(f"{bundle.family} {name}", contract_of(bundle, name, name, n, warmup), total, stages, calls)


def contract_of(bundle: Bundle, figure: str, program: str | None, n: int, warmup: int) -> TimingContract:
    """The contract of a figure that runs a program, or only the host when there is none."""
    config = bundle.manifest.config if bundle.manifest else {}
    memory, captured = bundle.pipeline.memory, bundle.pipeline.captured
    stages: tuple[str, ...] = (figure,)
    shapes: dict[str, tuple[int, ...]] = {}
    steps = 0
    if program is not None:
        declared = bundle.pipeline.programs.programs[program]
        stages = tuple(dict.fromkeys(step.stage for step in declared.steps() if isinstance(step, Call)))
        shapes = {spec.name: spec.shape for spec in declared.inputs}
        steps = declared.loop.num_rows if declared.loop else 0
    engine = f"{bundle.backend}+cuda_graph" if program in captured else bundle.backend
    return TimingContract.here(
        engine=engine, on_gpu=memory.has_graphs, precision=config.get("precision", "fp32"), steps=steps, shapes=shapes,
        stages=stages, host_copies=True, threads=bundle.options.threads, warmup=warmup, n=n, artifact=bundle.digest, notes=figure,
    )  # fmt: skip

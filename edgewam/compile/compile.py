"""`compile`: from a model's stages and programs to a bundle whose every stage was compared with the eager reference.

Nothing is written until everything is proved: stages are built into a temporary sibling, checked, run against golden
vectors of the eager reference, and only then renamed into place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgewam.compile.plan import Arrays, CompilePlan
from edgewam.compile.samples import random_inputs
from edgewam.compile.stage_gate import CapturingEngine, compare_stages
from edgewam.compile.timing import capture_and_time
from edgewam.compile.tolerances import allowed_deviation
from edgewam.core import plugins
from edgewam.core.artifacts import write_artifact
from edgewam.core.errors import GateError, PluginError
from edgewam.profiles.device import load_device
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.bundle import CONSTANTS, GOLDEN, STAGES, Bundle
from edgewam.runtime.deviation import Deviation, deviation
from edgewam.runtime.engine import Engine, EngineOptions
from edgewam.runtime.memory import Memory
from edgewam.runtime.pipeline import Pipeline
from edgewam.runtime.prompts import KIND, PROMPTS, save_prompts
from edgewam.runtime.selftest import GoldenCall, observe_run, save_golden
from edgewam.runtime.tensors import save_tensors
from edgewam.runtime.torch_memory import TorchMemory

SELF_TEST_FLOOR = 1e-4


def compile_bundle(plan: CompilePlan, out: Path | str) -> Path:
    """Build, prove and write a bundle; returns its directory.

    A bundle for a target that is not here is built all the same where the backend can; its golden vectors then prove it on the
    target, before its first command.

    Raises:
        PluginError: unknown backend, one that cannot run here and was given no target, or one that refuses a stage.
        EdgewamError: a stage that cannot be exported.
        GateError: a stage or a program that differs from the eager reference.
    """
    build, run = plugins.load("backend_build", plan.backend), plugins.load("backend_run", plan.backend)
    if hasattr(build, "check"):
        build.check(plan.build_options)
    stages, options = plan.stages, EngineOptions(plan.threads, device=plan.build_options.device)
    place = _place(plan, run, options)
    for stage in stages.values():
        if not (support := build.supports(stage)).ok:
            raise PluginError(f"Backend '{plan.backend}' cannot build: {support.reason}.")
    here = TorchMemory("cpu")
    reference = {name: CapturingEngine(TorchEngine(stage), here) for name, stage in stages.items()}
    golden = _record(plan, Pipeline(plan.programs, stages, reference, here))
    measured: dict[str, Any] = {}
    records: list[dict[str, Any]] = []
    golden_index: list[dict[str, object]] = []
    config = {
        "family": plan.family, "backend": plan.backend, "policy": plan.policy, "host": dict(plan.host), **plan.config,
        "programs": plan.programs.to_json(), "stages": records, "golden": golden_index,
    }  # fmt: skip
    made_for = plan.build_options.made_for(place)
    if made_for:
        config["device"] = made_for
    allowed = allowed_deviation(stages, build.TOLERANCE, on_gpu=place is None or place.has_graphs)
    with write_artifact(out, KIND, config=config, parents=plan.parents, measured=measured) as directory:
        (directory / STAGES).mkdir()
        building = replace(plan.build_options, reuse=Path(out) if Path(out).is_dir() else None)
        for stage in stages.values():
            records.append({"stage": stage.to_json(), "record": build.build(stage, directory / STAGES, building)})
        if place is None:
            made_for |= {"runtime": build.runtime_of(records[0]["record"]), "driver": build.LEAST_DRIVER}
        tolerance = allowed.program
        if place is not None:
            engines = {
                entry["stage"]["name"]: run.load(stages[entry["stage"]["name"]], directory / STAGES, entry["record"], options)
                for entry in records
            }
            samples = {name: [random_inputs(stage.inputs, seed=7), *reference[name].samples] for name, stage in stages.items()}
            report = compare_stages(stages, reference, engines, samples, allowed.stage, (here, place))
            measured["stages"] = report.to_json()
            report.require()
            pipeline = Pipeline(plan.programs, stages, engines, place, overlap=place.has_graphs)
            worst = _compare_programs(pipeline, golden, allowed.program)
            measured["programs"] = {name: d.to_json() for name, d in worst.items()}
            if place.has_graphs:
                measured |= capture_and_time(_in_memory(plan, plan.backend, engines, pipeline), pipeline, golden, config)
            tolerance = max(SELF_TEST_FLOOR, allowed.margin * max(d.relative for d in worst.values()))
        golden_index += save_golden(directory / GOLDEN, [GoldenCall(c.program, c.inputs, c.expected, tolerance) for c in golden])
        save_tensors(directory / CONSTANTS, plan.programs.constants)
        save_prompts(directory / PROMPTS, plan.prompts)
    return Path(out)


def _place(plan: CompilePlan, run: Any, options: EngineOptions) -> Memory | None:
    """Memory of the engines on this machine; None where they are for another one."""
    support, target = run.supports(), plan.build_options.target
    if not support.ok and target is None:
        raise PluginError(f"Backend '{plan.backend}' cannot run here: {support.reason}.")
    memory: Memory | None = run.memory(options) if support.ok else None
    if memory is not None and target is not None and memory.device_facts().get("sm") != load_device(target).sm:
        return None
    return memory


class _Recorder(Pipeline):
    """A pipeline that notes every run, to learn from a policy what its programs are really given."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.calls: list[tuple[str, Arrays]] = []

    def run(self, program: str, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        self.calls.append((program, {name: array.copy() for name, array in inputs.items()}))
        return super().run(program, inputs)


def _record(plan: CompilePlan, pipeline: Pipeline) -> list[GoldenCall]:
    """Golden calls with what the eager reference answers, from zero state."""
    calls = plan.calls
    if calls is None and plan.policy is not None:
        engines = {name: TorchEngine(stage) for name, stage in plan.stages.items()}
        recorder = _Recorder(plan.programs, plan.stages, engines, TorchMemory("cpu"))
        plugins.load("policy", plan.policy).rehearse(_in_memory(plan, "eager", {}, recorder))
        calls = recorder.calls
    if calls is None:
        calls = [(name, random_inputs(p.inputs, seed=i)) for i, (name, p) in enumerate(plan.programs.programs.items())]
    pipeline.reset()
    return [GoldenCall(name, inputs, observe_run(pipeline, name, inputs), 0.0) for name, inputs in calls]


def _in_memory(plan: CompilePlan, backend: str, engines: Mapping[str, Engine], pipeline: Pipeline) -> Bundle:
    return Bundle(plan.family, backend, plan.policy, plan.host, plan.stages, engines, pipeline, plan.prompts)


def _compare_programs(pipeline: Pipeline, golden: Sequence[GoldenCall], allowed: float) -> dict[str, Deviation]:
    """Worst deviation per program over all golden calls; GateError beyond what is allowed."""
    worst: dict[str, Deviation] = {}
    for call in golden:
        found = observe_run(pipeline, call.program, call.inputs)
        for name, expected in call.expected.items():
            now = deviation(found[name], expected)
            if not now.within(allowed):
                raise GateError(
                    f"Program '{call.program}' gives '{name}' off by {now.relative:.2g} of its maximum "
                    f"({now.num_bad} not finite) although each stage is within its tolerance; {allowed:g} is allowed."
                )
            if call.program not in worst or now.relative > worst[call.program].relative:
                worst[call.program] = now
    return worst

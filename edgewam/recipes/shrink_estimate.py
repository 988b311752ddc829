"""The plan of a shrink: what every step takes, from the same functions that `--dry-run` of the single steps uses.

A student has the shapes of its teacher, so everything after distilling is estimated on the checkpoint itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgewam.core.estimate import Duration, StepPlan, timed, timed_here, tree_bytes
from edgewam.recipes.shrink import Shrink, is_in_place
from edgewam.recipes.shrink_step import Step

if TYPE_CHECKING:
    from edgewam.runtime.bundle import Bundle

# Processor seconds of these steps for `small` on one core of an AMD EPYC with nothing else running; larger stages take longer.
_COMPILE = {"onnxruntime": 18.0, "eager": 10.0}
_QUANTIZE = {"auto": 60.0}
_ELSEWHERE = "measured for the policy `small` on one core of an AMD EPYC, not here"
_FIGURES = 4  # a profile times whole programs, their stages, the policy's calls, and before against after
# Stage files against the weights inside, from the shipped student: what a graph and its masks add.
_EXPORTED = {"eager": 1.25, "onnxruntime": 1.05}
_GOLDEN_RUNS = 4  # of every program, whose inputs and answers a bundle keeps


def estimate_shrink(plan: Shrink) -> tuple[list[StepPlan], dict[str, str]]:
    """Every step with inputs, outputs, time, memory and disk, and why each still has to run ("" when it is done).

    Nothing is written.  A step after one that has to run has to run as well.
    """
    from edgewam.recipes.shrink_steps import steps_of

    steps = steps_of(plan)
    reasons: dict[str, str] = {}
    for step in steps:
        earlier = next((name for name, why in reasons.items() if why), "")
        reasons[step.name] = f"after {earlier}" if earlier else step.why()
    before = _process()
    facts = _Facts(plan)
    found: list[StepPlan] = []
    for step in steps:
        make = {"distill": _distill, "quantize": _quantize, "compile": _compile, "validate": _validate, "profile": _profile}
        made = make[step.name](plan, step, facts, before)
        found += [made_of if reasons[step.name] else replace(made_of, settled="done before") for made_of in made]
    found.append(_place(plan, facts))
    return found, reasons


def _process() -> dict[str, int]:
    from edgewam.training.estimate import process_parts

    return process_parts()


class _Facts:
    """What is read and timed once: the compile plan of the checkpoint, and one chunk with its refresh in PyTorch."""

    def __init__(self, plan: Shrink) -> None:
        from edgewam.recipes.deploy import compile_plan

        self.backend = plan.target.backend
        self.source = compile_plan(plan.checkpoint, "eager", plan.num_action_steps, threads=plan.threads)
        self.described = self.source.describe()
        self.weight_bytes = int(self.described["weight_bytes"])
        self.constant_bytes = int(self.described["constant_bytes"])
        self.packed_bytes = self.weight_bytes
        self.chosen: Any = None
        if plan.target.plan is not None:
            from edgewam.recipes.quantization import plan_quantization

            self.chosen = plan_quantization(plan.checkpoint, plan.target.plan, plan.num_action_steps, plan.threads)
            layers = self.chosen.describe()["quantized_float32_bytes"]
            self.packed_bytes = self.weight_bytes - layers + layers // 4
        self.chunk_s = self._chunk_seconds(plan)

    @property
    def bundle_bytes(self) -> int:
        """Of the bundle on disk."""
        golden = _GOLDEN_RUNS * sum(
            spec.size_bytes for program in self.source.programs.programs.values() for spec in program.inputs
        )
        return round(_EXPORTED[self.backend] * self.packed_bytes) + self.constant_bytes + golden

    def _chunk_seconds(self, plan: Shrink) -> float:
        import torch

        from edgewam.core import plugins
        from edgewam.runtime.backends.eager import TorchEngine
        from edgewam.runtime.bundle import Bundle
        from edgewam.runtime.pipeline import Pipeline

        torch.set_num_threads(plan.threads)
        source = self.source
        engines = {name: TorchEngine(stage) for name, stage in source.stages.items()}
        pipeline = Pipeline(source.programs, source.stages, engines)
        bundle: Bundle = Bundle(
            source.family, "eager", source.policy, source.host, source.stages, engines, pipeline, source.prompts
        )
        assert source.policy is not None, "every family that is distilled has a policy"
        calls = plugins.load("policy", source.policy).timed_calls(bundle)

        def once() -> None:
            for figure in ("L_prefill", "L_chunk"):  # a family without refreshes prefills within its chunk
                if figure in calls:
                    calls[figure]()

        once()
        return timed(once)


def _distill(plan: Shrink, step: Step, facts: _Facts, before: dict[str, int]) -> list[StepPlan]:
    from edgewam.distill.ode import estimate

    assert plan.distillation is not None
    return estimate(plan.distillation, step.out)


def _quantize(plan: Shrink, step: Step, facts: _Facts, before: dict[str, int]) -> list[StepPlan]:
    assert plan.target.plan is not None
    described = facts.chosen.describe()
    layers = described["quantized_float32_bytes"]
    return [
        StepPlan(
            "quantize", (str(plan.policy), str(plan.dataset)), (str(step.out),),
            f"plan {plan.target.plan}, {len(described['layers'])} layers",
            Duration(_QUANTIZE.get(plan.target.plan), _ELSEWHERE),
            {"calibrating": {**before, "weights, four times": described["memory_estimate_bytes"]}},
            {"packed layers": layers // 4},
            notes=("what the stages see while they calibrate is not counted",),
        )
    ]  # fmt: skip


def _compile(plan: Shrink, step: Step, facts: _Facts, before: dict[str, int]) -> list[StepPlan]:
    source = plan.work / "quantized" if plan.target.plan is not None else plan.policy
    stages = facts.described["stages"]
    memory = {**before, "reference, engines, export": facts.described["memory_estimate_bytes"]}
    return [
        StepPlan(
            "compile", (str(source),), (str(step.out),),
            f"{len(stages)} stages, backend {plan.target.backend}, {plan.num_action_steps} action steps",
            Duration(_COMPILE.get(plan.target.backend), _ELSEWHERE),
            {"exporting": memory},
            {"bundle": facts.bundle_bytes},
            notes=_notes(plan),
        )
    ]  # fmt: skip


def _notes(plan: Shrink) -> tuple[str, ...]:
    """Where a bundle may be larger or smaller than estimated."""
    notes = []
    if plan.target.backend == "onnxruntime":
        notes.append("disk at most: weights that half precision holds exactly are stored in it")
    if plan.target.plan == "auto":
        notes.append("disk at least: measurements decide which layers stay float32, and those take four times as much")
    return tuple(notes)


def _validate(plan: Shrink, step: Step, facts: _Facts, before: dict[str, int]) -> list[StepPlan]:
    from edgewam.compile.excess_error import NUM_PAIRS

    sides = [plan.policy, *([plan.checkpoint] if plan.distillation else [])]
    chunks = plan.num_frames * NUM_PAIRS * 3 * len(sides)  # the reference twice, the bundle once
    seconds = chunks * facts.chunk_s + len(sides) * _COMPILE["eager"]
    weights = facts.weight_bytes + facts.packed_bytes
    return [
        StepPlan(
            "validate", (str(plan.work / "bundle"), *map(str, sides), str(plan.dataset)), (str(step.out),),
            f"{plan.num_frames} frames with {NUM_PAIRS} pairs of noise, against {len(sides)} references",
            Duration(seconds, f"{facts.chunk_s * 1e3:.0f} ms a chunk with its refresh in PyTorch, {timed_here()}"),
            {"both engines": {**before, "weights": 2 * weights}},
            disk_extra=round(_EXPORTED["eager"] * facts.weight_bytes),
        )
    ]  # fmt: skip


def _profile(plan: Shrink, step: Step, facts: _Facts, before: dict[str, int]) -> list[StepPlan]:
    return [
        StepPlan(
            "profile", (str(plan.work / "bundle"), str(plan.checkpoint)), (str(step.out),),
            f"{plan.num_timed} calls of each figure, before and after in one process",
            Duration(_FIGURES * plan.num_timed * facts.chunk_s, f"at most; a chunk in PyTorch {timed_here()}"),
            {"both engines": {**before, "weights": facts.weight_bytes + 2 * facts.packed_bytes}},
        )
    ]  # fmt: skip


def _place(plan: Shrink, facts: _Facts) -> StepPlan:
    return StepPlan(
        "place", (str(plan.work / "bundle"),), (str(plan.out),), "copy the bundle, when both gates passed",
        Duration(1.0, "a copy"), {}, {"bundle": facts.bundle_bytes}, tree_bytes(plan.out),
        settled="done before" if is_in_place(plan) else "",
    )  # fmt: skip

"""`validate`: gates 1 and 2 of DESIGN section 6 between two opened bundles, engine against student or student against teacher.

Gate 1 replays every stage of the candidate on the values that the reference's stages really saw; gate 2 compares the
actions of whole chunks with the policy's own spread.  Gate 3, the closed loop, is `evaluate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.compile.excess_error import ENGINE_LIMITS, ExcessError, ExcessErrorLimits, excess_error
from edgewam.compile.frames import Frame, FrameSampler
from edgewam.compile.stage_gate import CapturingEngine, StageReport, compare_stages
from edgewam.core.errors import ArtifactError, ContractError
from edgewam.runtime.bundle import GOLDEN, Bundle
from edgewam.runtime.pipeline import Pipeline
from edgewam.runtime.selftest import load_golden

STAGE_TOLERANCE = 1e-4  # relative to each output's maximum: two exact backends, float32
# INT8 against float32: 0.08 is the largest that a stage of `small` showed on real frames; scales of a wrong layer give 1
QUANTIZED_STAGE_TOLERANCE = 0.25
# 16 bits against float32, on real frames of `small`: bf16 0.009 (VAE encoder, the state's keys), fp16 0.0011; three times that
HALF_STAGE_TOLERANCE = {"bf16": 0.03, "fp16": 0.004}


def stage_tolerance(precision: str) -> float:
    """Of gate 1 for a bundle of this precision ("fp32", "bf16", "int8", "fp8+bf16", ...) against its float32 policy."""
    formats = set(precision.split("+"))
    if formats & {"int8", "fp8"}:
        return QUANTIZED_STAGE_TOLERANCE
    return max([STAGE_TOLERANCE, *(HALF_STAGE_TOLERANCE[name] for name in formats & set(HALF_STAGE_TOLERANCE))])


@dataclass(frozen=True)
class ValidationReport:
    """Results of the gates that ran, with what was compared; None where a gate was not asked for."""

    candidate: str
    reference: str
    stages: StageReport | None
    actions: ExcessError | None
    limits: ExcessErrorLimits

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        limits = {"median": self.limits.median, "p99": self.limits.p99}
        actions = None
        if self.actions is not None:
            passed = self.actions.median <= self.limits.median and self.actions.p99 <= self.limits.p99
            actions = {"passed": passed, "limits": limits, **self.actions.to_json()}
        return {
            "candidate": self.candidate,
            "reference": self.reference,
            "stages": self.stages.to_json() if self.stages else None,
            "actions": actions,
        }

    def require(self) -> None:
        """Raise GateError at the first gate that fails, in their order."""
        if self.stages is not None:
            self.stages.require()
        if self.actions is not None:
            self.actions.require(self.limits)


def validate(
    candidate: Bundle,
    reference: Bundle,
    *,
    stages: bool = True,
    frames: Iterable[Frame] = (),
    prompt: str | None = None,
    limits: ExcessErrorLimits = ENGINE_LIMITS,
    tolerance: float = STAGE_TOLERANCE,
    on_frames: bool = False,
    seed: int = 0,
    acting: Bundle | None = None,
) -> ValidationReport:
    """Run the gates and report; nothing is raised for a failed gate until `ValidationReport.require`.

    Args:
        candidate: the bundle that is to be trusted.
        reference: for an engine the same weights compiled with `eager`; for a student the teacher's bundle.
        stages: run gate 1; both sides must declare stages of the same inputs and outputs, whatever their dtypes.
        frames: for gate 2, skipped when empty.  Each is judged as the first of an episode.
        prompt: instruction instead of the frames' own.
        limits: of gate 2.
        tolerance: of gate 1.
        on_frames: gate 1 looks at what stages see on the frames instead of the golden vectors, whose synthetic scenes lie
            outside the ranges that a quantised policy was calibrated for.
        seed: of the noise pairs.
        acting: reference of gate 2 where it is another than that of gate 1: the same policy without the rewrites of its stages,
            which would hide in both sides.

    Raises:
        ContractError: bundles that cannot be compared.
        GateError: results that are not finite.
    """
    chosen = list(frames)
    report = _compare_stages(candidate, reference, tolerance, chosen if on_frames else [], prompt) if stages else None
    actions = _compare_actions(candidate, acting or reference, chosen, prompt, seed) if chosen else None
    return ValidationReport(candidate.digest, reference.digest, report, actions, limits)


def _compare_stages(
    candidate: Bundle, reference: Bundle, tolerance: float, frames: list[Frame], prompt: str | None
) -> StageReport:
    # not dtypes: keys and values have the weights' one, and samples travel as float32
    interfaces = [
        {name: [(spec.name, spec.shape) for spec in (*s.inputs, *s.outputs)] for name, s in bundle.stages.items()}
        for bundle in (candidate, reference)
    ]
    if interfaces[0] != interfaces[1]:
        names = interfaces[0].keys() | interfaces[1].keys()
        different = sorted(name for name in names if interfaces[0].get(name) != interfaces[1].get(name))
        raise ContractError(f"The bundles declare different stages ({', '.join(different)}): compare their actions only.")
    if reference.path is None or reference.manifest is None:
        raise ArtifactError("The reference must be a bundle opened from a directory: its golden vectors are the samples.")
    memory = reference.pipeline.memory
    capturing = {name: CapturingEngine(engine, memory) for name, engine in reference.engines.items()}
    pipeline = Pipeline(reference.pipeline.programs, reference.stages, capturing, memory)
    if frames:
        policy = replace(reference, engines=capturing, pipeline=pipeline).open_policy()
        sample = FrameSampler(policy, prompt)
        for index, frame in enumerate(frames):
            sample(frame, np.random.default_rng(index).standard_normal(policy.noise_shape).astype(np.float32))
    else:
        for call in load_golden(reference.path / GOLDEN, reference.manifest.config["golden"]):
            pipeline.run(call.program, call.inputs)
    samples: dict[str, list[Mapping[str, npt.NDArray[Any]]]] = {name: [*e.samples] for name, e in capturing.items()}
    memories = memory, candidate.pipeline.memory
    engines = reference.engines, candidate.engines
    return compare_stages(candidate.stages, *engines, samples, tolerance, memories, reference.stages)


def _compare_actions(candidate: Bundle, reference: Bundle, frames: list[Frame], prompt: str | None, seed: int) -> ExcessError:
    for words in dict.fromkeys(prompt or frame.prompt for frame in frames):
        if any(words not in bundle.prompts for bundle in (reference, candidate)):
            raise ContractError(
                f"A frame shows '{words}', of which not both bundles know the prompt. Add it to them with: "
                f'edgewam prompt add BUNDLE "{words}", or judge with a prompt that they know.'
            )
    policies = [bundle.open_policy() for bundle in (reference, candidate)]
    shapes = {policy.noise_shape for policy in policies}
    if len(shapes) > 1:
        raise ContractError(f"The policies take noise of different shapes {sorted(shapes)}, so they cannot be compared.")
    return excess_error(FrameSampler(policies[0], prompt), FrameSampler(policies[1], prompt), frames, shapes.pop(), seed)

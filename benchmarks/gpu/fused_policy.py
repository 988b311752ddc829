"""The shared random policy through our kernels: engines of every stage that is lowered, made in memory, in any weight format.

Stages that are not lowered run as in the other jobs: the image encoder compiled, the few element-wise ones as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.compilers import fast_function
from benchmarks.gpu.fused_engines import KeptEngine, ReferenceEngine
from benchmarks.gpu.kernel_choices import tuner
from benchmarks.gpu.kernel_formats import FORMATS, in_format, input_ranges
from benchmarks.gpu.kernel_recipes import Lowered, empty, lowered_stages
from benchmarks.gpu.policy import NOT_COMPILED, Policy
from edgewam.core.stage import Stage
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.backends.fused import FusedEngine, Loaded
from edgewam.runtime.engine import Engine
from edgewam.runtime.pipeline import Pipeline

COMPILED = ("image_encoder",)  # of the stages that are not lowered


class FusedPolicy:
    """What is lowered of a policy, and engines of it.

    lowered: the stages that became calls; refused: of the others, why not.
    real: inputs of every lowered stage as its last call of a refresh and a chunk saw them.
    """

    def __init__(self, policy: Policy, tune_s: float, plain: tuple[str, ...] = ()) -> None:
        """Lower what can be.

        tune_s: seconds for tuning all kernels of this process.  plain: stages whose calls run as their references, to try the
        code where the interpreter is slow.
        """
        self.policy, self._tune_s, self._plain = policy, tune_s, plain
        self.lowered, self.refused = lowered_stages(policy.stages())
        self._programs: dict[str, dict[str, Callable[..., Any]]] = {
            name: {file: fast_function(piece, policy.compiler, policy.device) for file, piece in lowered.programs.items()}
            for name, lowered in self.lowered.items()
        }
        self._ranges: dict[str, dict[str, float]] = {}
        self.real = self._recorded()

    def stages(self, format: str) -> dict[str, Lowered]:
        """The lowered stages in a format; activation scales come from real data."""
        kind = FORMATS[format]
        rounds = kind is not None and bool(kind.activations)
        return {name: in_format(s, format, self._ranges_of(name) if rounds else None) for name, s in self.lowered.items()}

    def engines(self, stages: Mapping[str, Lowered]) -> dict[str, Engine]:
        """One engine per stage: our kernels for `stages`, tuned as far as the time allows."""
        policy, tuned = self.policy, tuner(self.policy.device)
        for lowered in stages.values():
            tuned.tune(lowered, self._tune_s)
        choices = tuned.choices()
        engines = policy.engines(eager=[name for name in policy.stages() if name not in (*COMPILED, *NOT_COMPILED)])
        for name, lowered in stages.items():
            loaded = Loaded(lowered.weights, self._programs[name], tuned.target, choices)
            is_plain = name in self._plain
            engines[name] = (
                ReferenceEngine(lowered, policy.device)
                if is_plain
                else FusedEngine(lowered.stage, lowered.recipe, loaded, policy.memory)
            )
        return engines

    def pipeline(self, stages: Mapping[str, Lowered], steps: int, overlap: bool = False) -> Pipeline:
        """A pipeline whose prompt is set and whose memory is full."""
        return self.policy.filled(self.engines(stages), steps, overlap)

    def declared(self, stages: Mapping[str, Lowered]) -> dict[str, Stage]:
        """All stages with the weight bytes that a format leaves of them, for floors."""
        out = dict(self.policy.stages())
        for name, lowered in stages.items():
            cost, plain, packed = out[name].cost, weight_bytes(self.lowered[name]), weight_bytes(lowered)
            out[name] = replace(out[name], cost=replace(cost, weight_bytes=cost.weight_bytes - plain + packed))
        return out

    def cosines(self, stages: Mapping[str, Lowered]) -> dict[str, float]:
        """Cosine of each lowered stage to the stage as it is, on real inputs; the least of its outputs."""
        engines = self.engines(stages)
        return {name: stage_cosine(lowered.stage, engines[name], self.real[name]) for name, lowered in stages.items()}

    def _recorded(self) -> dict[str, dict[str, Tensor]]:
        policy = self.policy
        kept = {name: KeptEngine(stage) for name, stage in policy.stages().items()}
        pipeline = policy.filled(kept, 2)
        for name in self.lowered:
            kept[name].is_recording = True
        pipeline.run("plan", policy.plan_inputs(policy.config.memory_slots))
        pipeline.run("act", policy.act_inputs())
        return {name: kept[name].seen[-1] for name in self.lowered}

    def _ranges_of(self, name: str) -> dict[str, float]:
        if name not in self._ranges:
            self._ranges[name] = input_ranges(self.lowered[name], self.real[name])
        return self._ranges[name]


@functools.lru_cache(maxsize=1)
def _fused_policy(policy: Policy, tune_s: float, plain: tuple[str, ...]) -> FusedPolicy:
    return FusedPolicy(policy, tune_s, plain)


def fused_policy(policy: Policy, p: Mapping[str, Any]) -> FusedPolicy:
    """The one of this process for a job's parameters."""
    return _fused_policy(policy, p["tune_s"], tuple(p.get("plain", ())))


def weight_bytes(lowered: Lowered) -> int:
    """Bytes of a recipe's weights."""
    return sum(weight.numel() * weight.element_size() for weight in lowered.weights.values())


def stage_cosine(stage: Stage, engine: Engine, inputs: Mapping[str, Tensor]) -> float:
    """Cosine of an engine's outputs to the stage as it is; the least of them."""
    results = []
    for each in (TorchEngine(stage), engine):
        (device,) = {str(tensor.device) for tensor in inputs.values()}
        outputs = {spec.name: empty(spec, device) for spec in stage.outputs}
        each.bind(inputs, outputs)()
        results.append(outputs)
    return min(cosine(results[0][name], results[1][name]) for name in results[0])


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two tensors as vectors, in float64; 0 where either holds something that is no number."""
    a, b = a.double().flatten(), b.double().flatten()
    if not (a.isfinite().all() and b.isfinite().all()):
        return 0.0
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))

"""From a policy to a quantised one: what the steps of `quantize` need to know of policies, frames and engines."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewam.core.errors import ContractError, EdgewamError

if TYPE_CHECKING:
    from edgewam.compile.plan import CompilePlan
    from edgewam.quantize.choose import Choice, LayerFacts
    from edgewam.quantize.layers import Layer, LayerName
    from edgewam.quantize.plan import PrecisionPlan
    from edgewam.quantize.record import Recording
    from edgewam.recipes.quantization_judge import Judge, Report

EPISODES, FRAMES = 5, 48  # of calibration (about 80 chunks); behind the error of all layers together
_FLOPS_FOR_THREADS = 5e9  # of the largest stage: below, torch's threads wait for each other longer than they help


@dataclass(frozen=True)
class QuantizePlan:
    """What will be quantised: the policy's compile plan, its layers, and the precision plan (of `auto`, the candidates)."""

    policy: Path
    name: str
    source: CompilePlan
    layers: Mapping[LayerName, Layer]
    precision: PrecisionPlan
    formats: Mapping[LayerName, str]

    def describe(self) -> dict[str, Any]:
        """What `--dry-run` prints."""
        rows = [
            {
                "stage": stage,
                "layer": path,
                "shape": list(layer.weight.shape),
                "format": self.formats.get((stage, path), "none"),
                "float32_bytes": 4 * layer.weight.numel(),
            }
            for (stage, path), layer in self.layers.items()
        ]
        chosen = [row["float32_bytes"] for row in rows if row["format"] != "none"]
        return {
            "plan": self.name,
            "backend": self.precision.backend,
            "layers": rows,
            "float32_bytes": sum(row["float32_bytes"] for row in rows),
            "quantized_float32_bytes": sum(chosen),
            "memory_estimate_bytes": 4 * sum(stage.cost.weight_bytes for stage in self.source.stages.values()),
        }


def plan_quantization(
    policy: Path, plan: str, num_action_steps: int | None = None, threads: int = 2, backend: str | None = None
) -> QuantizePlan:
    """Load the policy and resolve a plan for its layers.

    Args:
        policy: artifact of `train` or `distill`.
        plan: `int8`, `fp8`, `auto`, or the path of a plan file.
        num_action_steps: of the sampler, to calibrate over all rows of its table; by default the policy's own.
        threads: of the engine that layers are timed in, and of torch for large policies.
        backend: that a named plan is for, by default its own; a plan file names its backend itself.

    Raises:
        EdgewamError: a policy that is quantised already, a plan that does not fit it or that its backend cannot run.
    """
    import torch

    from edgewam.compile.rewrites import NOT_LAYERWISE, fitting
    from edgewam.core import plugins
    from edgewam.quantize.artifact import is_quantized
    from edgewam.quantize.formats import NONE
    from edgewam.quantize.layers import find_layers
    from edgewam.quantize.named import BACKENDS, NAMED, candidates, named_plan
    from edgewam.quantize.plan import PrecisionPlan
    from edgewam.recipes.deploy import backend_rewrites, compile_plan

    if is_quantized(policy):
        raise EdgewamError(f"'{policy}' is quantised already. Give the policy or student that it was made from.")
    precision = None if plan in NAMED else PrecisionPlan.read(Path(plan)) if Path(plan).is_file() else named_plan(plan, {})
    gains, without = backend_rewrites(backend or (precision.backend if precision else BACKENDS.get(plan, "eager")))
    source = compile_plan(policy, "eager", num_action_steps, threads=threads)
    if gains:  # scales belong to the stages as the backend will get them, and to layers, not to stacks of them
        chosen = fitting(source.stages, (*without, *NOT_LAYERWISE))
        source = compile_plan(policy, "eager", num_action_steps, threads=threads, rewrites=chosen)
    largest = max(stage.cost.flops for stage in source.stages.values())
    torch.set_num_threads(threads if largest > _FLOPS_FOR_THREADS else 1)
    layers = find_layers(source.stages)
    if precision is None:
        unsteady = _unsteady_stages(source)
        precision = candidates(layers, unsteady) if plan == "auto" else named_plan(plan, layers, unsteady, backend)
    if backend not in (None, precision.backend):
        raise ContractError(
            f"The plan '{precision.name}' is for the backend '{precision.backend}', not for '{backend}'. Named plans for other "
            "backends: int8, fp8; in a plan file change its field 'backend'."
        )
    precision.require_backend(plugins.load("backend_build", precision.backend))
    formats = {name: rule.format for name, rule in precision.resolve(layers).items() if rule.format != NONE}
    if not formats:
        raise ContractError(
            f"The plan '{precision.name}' quantises no layer of '{policy}'. Give a rule another format than none."
        )
    return QuantizePlan(policy, "auto" if plan == "auto" else precision.name, source, layers, precision, formats)


def _unsteady_stages(plan: CompilePlan) -> set[str]:
    """Stages whose activations calibration hardly sees: those that only run when a new instruction comes (they write nothing
    but state of lifetime `prompt`), and those that compute a single row per call."""
    from edgewam.core.program import Call

    kept = {state.spec.name for state in plan.programs.states if state.lifetime == "prompt"}
    users: dict[str, set[bool]] = {}
    for program in plan.programs.programs.values():
        for step in program.steps():
            if isinstance(step, Call):
                users.setdefault(step.stage, set()).add(set(step.outputs.values()) <= kept)
    return {stage for stage, only in users.items() if only == {True} or plan.stages[stage].cost.rows == 1}


def quantize_policy(
    plan: QuantizePlan, dataset: Path, out: Path, *, num_episodes: int = EPISODES, num_frames: int = FRAMES, threads: int = 2,
    report: Report | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Calibrate, measure every layer, choose where the plan is `auto`, and write the artifact; returns what was measured.

    Raises:
        EdgewamError: data that cannot calibrate this policy, modelopt missing.
    """
    from edgewam.data.dataset import Dataset
    from edgewam.quantize.artifact import packed_bytes, write_quantized
    from edgewam.quantize.choose import to_json
    from edgewam.quantize.layers import QuantizedConv2d, QuantizedLinear
    from edgewam.quantize.sensitivity import input_shapes
    from edgewam.recipes.quantization_candidates import make_candidates, measure_errors
    from edgewam.recipes.quantization_judge import PAIRS, Judge

    began = time.monotonic()
    say = report or (lambda what, done, total: None)
    data = Dataset.open(dataset)
    host, source = plan.source.host, plan.source
    recording = _record(plan, data, num_episodes, say)
    candidates = make_candidates(plan, recording, say)
    judge = Judge(source, data, num_frames)
    errors = measure_errors(plan, candidates, judge, say)
    shapes = input_shapes(source.stages, plan.layers, recording.calls)
    facts = _facts(plan, candidates, errors, shapes, threads, say)
    choices, total = _decide(plan, facts, candidates, judge, say)
    layers: dict[LayerName, QuantizedLinear | QuantizedConv2d] = {
        c.name: candidates[c.name, c.format] for c in choices if c.format != "none"
    }
    total_ms = sum(fact.float_ms * fact.calls for fact in facts)
    precision = plan.precision
    if plan.name == "auto":
        from edgewam.quantize.choose import auto_plan

        precision = auto_plan(plan.precision, choices)
    elsewhere = sum(4 * layer.weight.numel() for name, layer in plan.layers.items() if name not in layers)
    measured: dict[str, Any] = {
        "excess_error_median": total.median,
        "excess_error_p99": total.p99,
        "spread_rms_median": float(total.to_json()["spread_rms_median"]),
        "num_frames": num_frames,
        "num_pairs": PAIRS,
        "bytes": {**packed_bytes(layers), "float32_elsewhere": elsewhere},
        "layers": [to_json(fact, choice, total_ms) for fact, choice in zip(facts, choices, strict=True)],
        "seconds": round(time.monotonic() - began, 1),
        "threads": threads,
    }
    config = {
        "plan": plan.name,
        "policy_kind": source.config["trained_as"],
        "num_action_steps": source.config["num_action_steps"],
        "rewrites": list(source.config.get("rewrites", ())),
        "calibration": {
            "dataset": data.digest, "episodes": num_episodes, "chunks": recording.num_chunks, "digest": recording.digest,
            "chunk_size": host["chunk_size"],
        },
    }  # fmt: skip
    write_quantized(out, layers, precision, plan.policy, source.parents[source.config["trained_as"]], config, measured)
    return measured


def _record(plan: QuantizePlan, data: Any, num_episodes: int, say: Report) -> Recording:
    from edgewam.quantize.record import RecordingEngine, check_dataset, record
    from edgewam.recipes.quantization_judge import eager_policy

    source = plan.source
    check_dataset(data, int(source.host["state_dim"]), num_episodes)
    engines = {name: RecordingEngine(stage) for name, stage in source.stages.items()}
    policy = eager_policy(source, engines)
    return record(
        policy, source.programs, engines, data, list(source.prompts), int(source.host["chunk_size"]), num_episodes,
        lambda done, total: say("recording what the stages see", done, total),
    )  # fmt: skip


def _facts(
    plan: QuantizePlan, candidates: Mapping[tuple[LayerName, str], Any], errors: Mapping[tuple[LayerName, str], float],
    shapes: Mapping[LayerName, tuple[int, ...]], threads: int, say: Report,
) -> list[LayerFacts]:  # fmt: skip
    """Errors, bytes and, where the engine is ONNX Runtime, times of every layer and format."""
    from edgewam.quantize.choose import LayerFacts
    from edgewam.quantize.named import is_narrow

    programs = plan.source.programs
    known: dict[Any, dict[str, float]] = {}
    facts = []
    for done, (name, layer) in enumerate(plan.layers.items()):
        kinds = {kind: made for (n, kind), made in candidates.items() if n == name}
        times = _times(layer, kinds, shapes[name], threads, known) if plan.precision.backend == "onnxruntime" else {}
        say("timing layers", done + 1, len(plan.layers))
        facts.append(
            LayerFacts(
                name=name,
                calls=sum(programs.programs[program].num_calls(name[0]) for program in programs.programs if program != "prompt"),
                float_ms=times.get("float32", 0.0),
                float_bytes=4 * layer.weight.numel(),
                errors={kind: errors[name, kind] for kind in kinds},
                times_ms={kind: times[kind] for kind in kinds if times},
                packed_bytes={kind: made.packed_bytes for kind, made in kinds.items()},
                blocked="narrow: nothing to gain and sensitive" if is_narrow(layer) else "",
            )
        )
    return facts


def _times(
    layer: Any, kinds: Mapping[str, Any], shape: Any, threads: int, known: dict[Any, dict[str, float]]
) -> dict[str, float]:
    from edgewam.compile.layer_timing import time_layers, timing_key

    key = (timing_key(layer, shape), *(timing_key(made, shape) for made in kinds.values()))
    if key not in known:
        known[key] = time_layers({"float32": layer, **kinds}, shape, threads)
    return known[key]


def _decide(
    plan: QuantizePlan, facts: Sequence[LayerFacts], candidates: Mapping[Any, Any], judge: Judge, say: Report
) -> tuple[list[Choice], Any]:
    """The format of every layer, and the measured error of all together."""
    from edgewam.quantize.choose import ROUNDS, Choice, search

    def measure(choices: Sequence[Choice]) -> Any:
        return judge.together({c.name: candidates[c.name, c.format] for c in choices if c.format != "none"})

    if plan.name == "auto":
        return search(facts, measure, lambda turn: say("all layers together", turn, ROUNDS))
    rules = plan.precision.resolve(plan.layers)
    choices = [
        Choice(f.name, rules[f.name].format, rules[f.name].reason or f"plan {plan.name}")
        if f.name in rules
        else Choice(f.name, "none", "no rule matches")
        for f in facts
    ]
    say("all layers together", 0, 1)
    return choices, measure(choices)

"""From a trained policy on disk to a bundle: what `compile` needs to know of the family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewam.core.errors import EdgewamError

if TYPE_CHECKING:
    from edgewam.compile.plan import CompilePlan
    from edgewam.quantize.plan import PrecisionPlan
    from edgewam.training.policy_artifact import LoadedPolicy

# base precision -> (torch's name, name in a bundle's manifest)
PRECISIONS = {"float32": ("float32", "fp32"), "bf16": ("bfloat16", "bf16"), "fp16": ("float16", "fp16")}
TEXT_ENCODER = "small"  # the frozen encoder of `models/text.py`; released policies need the embeddings of their own


def compile_plan(
    policy: Path,
    backend: str = "onnxruntime",
    num_action_steps: int | None = None,
    prompts: Sequence[str] = (),
    threads: int = 2,
    precision: str = "float32",
    target: str | None = None,
    device: str = "cpu",
    rewrites: Sequence[str] | bool | None = None,
    layer_groups: int = 1,
) -> CompilePlan:
    """Plan of a bundle.

    Args:
        policy: artifact of `train` (kind "policy"), `distill` (kind "student") or `quantize` (kind "quantized").
        backend: name of a compile backend.
        num_action_steps: Euler steps of the action sampler; by default what the policy is meant for (10, or 2 distilled).
        prompts: instructions that go into the bundle besides those that the policy was trained on.
        threads: compute threads of the engines while the bundle proves itself.
        precision: of weights, products, keys and values that no plan quantises, one of `PRECISIONS`.  The residual stream, norms,
            softmax and the sampler stay float32.
        target: name of the device that will run it (`profiles`), for backends that build for one; a format that it lacks is
            refused before any work.
        device: where backends that run on torch compute here, "cpu" or "cuda".
        rewrites: names of exact rewrites, all that fit (True) or none (False); by default those that the backend gains from.  A
            quantised policy keeps those that it was made with.
        layer_groups: stages that the planner is split into, so that action chunks get the device between them.

    Raises:
        EdgewamError: the artifact is damaged or of another kind, a student that was never taught that number of steps, or a
            precision or plan that the backend or the device cannot compute in.
    """
    import torch

    from edgewam.compile.build_options import BuildOptions
    from edgewam.compile.plan import plan_policy
    from edgewam.models.wan_vae_image import image_encoder
    from edgewam.quantize.artifact import is_quantized, read_quantized
    from edgewam.training.policy_artifact import THREE_CAMERAS, load_policy

    _check_precision(precision, backend, target)
    options = BuildOptions(target, device)
    if is_quantized(policy):
        stored = read_quantized(policy)
        _check_plan(stored.plan, policy, backend, target)
        made_with = tuple(stored.manifest.config.get("rewrites", ()))
        if rewrites is not None and (rewrites is True or tuple(rewrites or ()) != made_with):
            raise EdgewamError(
                f"'{policy}' was quantised with the rewrites {', '.join(made_with) or 'none'}, which its scales belong to. "
                "Leave the rewrites out, or quantise again."
            )
        below = compile_plan(stored.policy, backend, num_action_steps, prompts, threads, precision, rewrites=made_with)
        stages = stored.apply(below.stages)
        base = () if precision == "float32" else (PRECISIONS[precision][1],)
        whole = replace(
            below,
            stages=stages,
            programs=stored.apply_programs(below.programs, stages),
            parents={"quantized": stored.manifest.digest, **below.parents},
            config={**below.config, "precision": "+".join((stored.precision, *base))},
            build_options=options,
        )
        return _in_groups(whole, layer_groups)
    loaded = load_policy(policy)
    facts, stats = loaded.facts, loaded.stats
    steps = num_action_steps or facts.num_action_steps
    if facts.steps_are_fixed and steps != facts.num_action_steps:
        raise EdgewamError(
            f"'{policy}' was taught to take {facts.num_action_steps} steps and no other number, so {steps} would give wrong "
            f"actions. Compile its teacher with --steps {steps}, or distil again: edgewam distill --student-steps {steps}"
        )
    dtype = getattr(torch, PRECISIONS[precision][0])
    gains, without = backend_rewrites(backend)
    if isinstance(rewrites, bool) or rewrites is None:
        rewrites = None if rewrites or (gains and rewrites is None) else ()
    rows = _text_rows(loaded, prompts)
    plan = plan_policy(
        loaded.family,
        loaded.model.to(dtype),
        backend,
        num_action_steps=steps,
        prompts=rows,
        program_arguments={"tables": facts.sampler_tables},
        stage_arguments={
            "image_encoder": image_encoder(loaded.vae.to(dtype)),
            "state_normalizer": stats.state,
            "action_normalizer": stats.action,
        },
        host={
            "action_std": stats.action.std.tolist(),
            "offset_trained": facts.layout.max_offset > 0,
            "text_encoder": facts.text_encoder,
            **({} if facts.composition == THREE_CAMERAS else {"composition": facts.composition}),
            **({"prefix_trained": True, "max_prefix": facts.max_prefix} if facts.max_prefix else {}),
        },
        config={"trained_as": loaded.manifest.kind, "precision": PRECISIONS[precision][1], "tables": facts.sampler_tables},
        parents={loaded.manifest.kind: loaded.manifest.digest},
        threads=threads,
        rewrites=rewrites,
        without=without,
        text_bucket=_text_bucket(loaded, rows),
    )
    return _in_groups(replace(plan, build_options=options), layer_groups)


def _text_rows(policy: LoadedPolicy, further: Sequence[str]) -> dict[str, Any]:
    """Instruction -> rows: of all that the policy was trained on where edgewam embeds them, else of those that it holds."""
    known = policy.facts.tasks if policy.facts.text_encoder == TEXT_ENCODER else tuple(policy.prompts)
    names = dict.fromkeys((*known, *further))
    if not names:
        raise EdgewamError(
            f"'{policy.path}' holds no instruction, so a bundle of it could not be told what to do. Add one with: "
            f'edgewam prompt add {policy.path} "what the robot shall do" --text ENCODER'
        )
    text = policy.text()
    return {name: text.encode(name) for name in names}


def _text_bucket(policy: LoadedPolicy, rows: Mapping[str, Any]) -> int | None:
    """None for the family's own number, or all rows of the text where an instruction has more words than that."""
    from edgewam.core import plugins

    usual: int = plugins.load("family", policy.family).host_config(policy.model.config)["text_bucket"]
    longest = max(int((embedding != 0).any(1).sum()) for embedding in rows.values())
    return None if longest <= usual else policy.sizes.text_len


def backend_rewrites(backend: str) -> tuple[bool, tuple[str, ...]]:
    """Whether a backend gains from the exact rewrites, and the names of those that it does not gain from."""
    from edgewam.core import plugins

    without = getattr(plugins.load("backend_build", backend), "REWRITES_LEFT_OUT", None)
    return without is not None, tuple(without or ())


def _in_groups(plan: CompilePlan, layer_groups: int) -> CompilePlan:
    from edgewam.compile.layer_groups import in_layer_groups

    if layer_groups == 1:
        return plan
    stages, programs = in_layer_groups(plan.stages, plan.programs, layer_groups)
    return replace(plan, stages=stages, programs=programs, config={**plan.config, "layer_groups": layer_groups})


def _check_precision(precision: str, backend: str, target: str | None) -> None:
    from edgewam.core import plugins
    from edgewam.profiles.device import load_device

    if precision not in PRECISIONS:
        raise EdgewamError(f"Unknown precision '{precision}'. Available: {', '.join(PRECISIONS)}.")
    build = plugins.load("backend_build", backend)
    if target is not None and hasattr(build, "find_target"):
        build.find_target(target)  # an unknown name is answered with those that the backend builds for
    able = getattr(build, "PRECISIONS", ("float32",))
    if precision not in able:
        raise EdgewamError(
            f"The backend '{backend}' computes in {', '.join(able)}; it would turn {precision} back. Compile with --precision "
            f"{able[0]}, or for a backend that computes in {precision}, such as --backend eager."
        )
    if target is not None and precision != "float32":
        load_device(target).require_format(PRECISIONS[precision][1])


def _check_plan(plan: PrecisionPlan, policy: Path, backend: str, target: str | None) -> None:
    """Refuse a precision plan that the backend would undo, or that the device has no matrix units for."""
    from edgewam.core import plugins
    from edgewam.profiles.device import load_device
    from edgewam.quantize.formats import NONE, WEIGHTS_ONLY

    try:
        plan.require_backend(plugins.load("backend_build", backend), backend)
    except EdgewamError as error:
        raise EdgewamError(f"'{policy}' was quantised for the backend '{plan.backend}': {error}") from error
    if target is not None:
        products = {rule.format for rule in plan.rules} - {NONE, *WEIGHTS_ONLY}
        for name in sorted({kind.split("_")[0] for kind in products}):
            load_device(target).require_format(name)

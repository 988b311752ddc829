"""What a bundle is judged against: what it was compiled from, the student below a quantised one, or a student's teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgewam.core.artifacts import read_manifest
from edgewam.core.errors import EdgewamError, require

if TYPE_CHECKING:
    from edgewam.compile.validate import ValidationReport
    from edgewam.runtime.bundle import Bundle


def eager_partner(bundle: Bundle, policy: Path, num_action_steps: int | None, threads: int, is_plain: bool = False) -> Bundle:
    """The policy itself in PyTorch, in memory, with the bundle's golden inputs and prompts; by default with its own number of
    steps.

    With the bundle's number of steps its stages are those of the bundle: the same exact rewrites and layer groups; without them
    if `is_plain`.  A quantised policy keeps the rewrites that its scales belong to.

    Raises:
        MissingExtraError: torch is not installed, as on a robot.
    """
    torch = require("torch", extra="train")
    from edgewam.quantize.steps import with_ignored_rows
    from edgewam.recipes.deploy import compile_plan
    from edgewam.runtime.backends.eager import TorchEngine
    from edgewam.runtime.pipeline import Pipeline

    torch.set_num_threads(threads)
    config = bundle.manifest.config if bundle.manifest and num_action_steps is not None else {}
    if is_plain:
        plan = compile_plan(policy, "eager", num_action_steps, threads=threads)
    else:
        plan = compile_plan(
            policy, "eager", num_action_steps, threads=threads, rewrites=tuple(config.get("rewrites", ())),
            layer_groups=config.get("layer_groups", 1),
        )  # fmt: skip
    stages, programs = dict(plan.stages), plan.programs
    if num_action_steps is not None:  # the same sampler, so both can be given the same
        stages, programs = with_ignored_rows(stages, programs, bundle.stages, bundle.pipeline.programs.constants)
    engines = {name: TorchEngine(stage) for name, stage in stages.items()}
    pipeline = Pipeline(programs, stages, engines)
    # instructions that the finished bundle was given: their rows are the text encoder's, not the policy's
    rows = ("text_encoder", "text_bucket", "text_len")
    added = bundle.prompts if all(plan.host.get(name) == bundle.host.get(name) for name in rows) else {}
    return replace(
        bundle, backend="eager", stages=stages, engines=engines, pipeline=pipeline, host=plan.host,
        prompts={**added, **plan.prompts},
    )  # fmt: skip


def validate_against(
    bundle: Path, reference: Path, dataset: Path, *, num_frames: int = 16, prompt: str | None = None, threads: int = 2
) -> ValidationReport:
    """Gates 1 and 2 of a bundle.

    With the policy that the bundle was compiled from, both sides have the same weights and steps: engine limits, both gates;
    gate 2 against its plain stages, so that a wrong rewrite shows.  What computes in 8 or 16 bits has the limits of quantisation,
    whatever it is judged against, best its unquantised student.  With a teacher, whose own number of steps is used, weights
    differ: distillation limits, gate 2 only.

    Args:
        bundle: what is judged.
        reference: policy artifact; it runs eagerly, in memory.
        dataset: where the frames come from.
        num_frames: frames of gate 2.
        prompt: instruction instead of the frames' own.
        threads: compute threads.

    Raises:
        EdgewamError: the reference is neither of the two; damaged input.
    """
    from edgewam.compile.excess_error import DISTILLED_LIMITS, ENGINE_LIMITS, QUANTIZED_LIMITS
    from edgewam.compile.frames import dataset_frames
    from edgewam.compile.validate import stage_tolerance, validate
    from edgewam.data.dataset import Dataset
    from edgewam.runtime.bundle import KIND, Bundle
    from edgewam.runtime.prompts import prompt_names

    manifest, origin = read_manifest(bundle, kind=KIND), read_manifest(reference)
    is_engine = origin.digest in manifest.parents.values()
    is_quantized = is_engine and "quantized" in manifest.parents
    if origin.kind not in ("policy", "student", "quantized") or not (is_engine or origin.kind == "policy"):
        raise EdgewamError(
            f"'{bundle}' was not compiled from '{reference}' ({origin.kind} {origin.digest[:12]}). Give the policy that it was "
            f"compiled from ({', '.join(digest[:12] for digest in manifest.parents.values())}), or a teacher."
        )
    known, source = prompt_names(bundle), "" if manifest.config["host"].get("text_encoder") == "small" else " --text ENCODER"
    frames = dataset_frames(Dataset.open(dataset), num_frames)
    for words in dict.fromkeys(prompt or frame.prompt for frame in frames):
        if words not in known:  # before minutes of work, not after
            raise EdgewamError(
                f"'{bundle}' has no embedding of the prompt '{words}'. It has: {', '.join(map(repr, known))}. "
                f'Add it with: edgewam prompt add {bundle} "{words}"{source}; or judge with one that it has: --prompt'
            )
    opened = Bundle.open(bundle, threads=threads)
    steps = manifest.config["num_action_steps"] if is_engine else None
    precision = str(manifest.config.get("precision", "fp32"))
    limits = DISTILLED_LIMITS if not is_engine else ENGINE_LIMITS if precision == "fp32" else QUANTIZED_LIMITS
    partner = eager_partner(opened, reference, steps, threads)
    changes = is_engine and (manifest.config.get("rewrites") or manifest.config.get("layer_groups"))
    report = validate(
        opened,
        partner,
        acting=eager_partner(opened, reference, steps, threads, is_plain=True) if changes else None,
        stages=is_engine,
        frames=frames,
        prompt=prompt,
        limits=limits,
        tolerance=stage_tolerance(precision),
        on_frames=is_quantized,
    )
    return replace(report, reference=origin.digest)

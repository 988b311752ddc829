"""From a trained policy on disk to a bundle: what `compile` and `edgewam prompt add` need to know of the family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgewam.core.errors import EdgewamError

if TYPE_CHECKING:
    from edgewam.compile.compile import CompilePlan

TEXT_ENCODER = "small"  # the frozen encoder of `models/text.py`; released policies need the embeddings of their own


def compile_plan(
    policy: Path, backend: str = "onnxruntime", num_action_steps: int | None = None, prompts: Sequence[str] = (), threads: int = 2
) -> CompilePlan:
    """Plan of a bundle.

    Args:
        policy: artifact of `train` (kind "policy"), `distill` (kind "student") or `quantize` (kind "quantized").
        backend: name of a compile backend.
        num_action_steps: Euler steps of the action sampler; by default what the policy is meant for (10, or 2 distilled).
        prompts: instructions that go into the bundle besides those that the policy was trained on.
        threads: compute threads of the engines while the bundle proves itself.

    Raises:
        EdgewamError: the artifact is damaged or of another kind, or a student that was never taught that number of steps.
    """
    from edgewam.compile.compile import plan_policy
    from edgewam.models import aha_wam
    from edgewam.models.text import SmallTextEncoder
    from edgewam.models.wan_vae_image import image_encoder
    from edgewam.quantize.artifact import is_quantized, read_quantized
    from edgewam.training.policy_artifact import load_policy

    if is_quantized(policy):
        stored = read_quantized(policy)
        below = compile_plan(stored.policy, backend, num_action_steps, prompts, threads)
        return replace(
            below,
            stages=stored.apply(below.stages),
            parents={"quantized": stored.manifest.digest, **below.parents},
            config={**below.config, "precision": stored.precision},
        )
    loaded = load_policy(policy)
    config, facts, stats = loaded.model.config, loaded.facts, loaded.stats
    steps = num_action_steps or facts.num_action_steps
    if facts.steps_are_fixed and steps != facts.num_action_steps:
        raise EdgewamError(
            f"'{policy}' was taught to take {facts.num_action_steps} steps and no other number, so {steps} would give wrong "
            f"actions. Compile its teacher with --steps {steps}, or distil again: edgewam distill --student-steps {steps}"
        )
    text = SmallTextEncoder(config.text_dim, config.text_len)
    names = dict.fromkeys((*facts.tasks, *prompts))
    return plan_policy(
        aha_wam.FAMILY,
        loaded.model,
        backend,
        num_action_steps=steps,
        prompts={name: text.encode(name) for name in names},
        stage_arguments={
            "image_encoder": image_encoder(loaded.vae),
            "state_normalizer": stats.state,
            "action_normalizer": stats.action,
        },
        host={
            "action_std": stats.action.std.tolist(),
            "offset_trained": facts.layout.max_offset > 0,
            "text_encoder": TEXT_ENCODER,
        },
        config={"trained_as": loaded.manifest.kind},
        parents={loaded.manifest.kind: loaded.manifest.digest},
        threads=threads,
    )


def add_prompt(bundle: Path, instruction: str) -> None:
    """Embed an instruction and rewrite the bundle with it; everything else stays as it was proved.

    Raises:
        EdgewamError: the instruction is known already, or the bundle's text encoder is not part of edgewam.
    """
    from edgewam.core.artifacts import read_manifest
    from edgewam.models.text import SmallTextEncoder, pack_context
    from edgewam.runtime.bundle import KIND
    from edgewam.runtime.prompts import prompt_names, store_prompt

    host = read_manifest(bundle, kind=KIND).config["host"]
    if instruction in prompt_names(bundle):
        raise EdgewamError(f"'{bundle}' knows '{instruction}' already.")
    if host.get("text_encoder") != TEXT_ENCODER:
        raise EdgewamError(
            f"The text encoder of '{bundle}' is not part of edgewam; compile it again with this prompt's embedding."
        )
    embedding = SmallTextEncoder(host["text_dim"], host["text_len"]).encode(instruction)
    rows, bias = pack_context(embedding, host["text_bucket"])
    store_prompt(bundle, instruction, {"text_rows": rows, "text_bias": bias})

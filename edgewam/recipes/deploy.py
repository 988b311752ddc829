"""From a trained policy on disk to what `compile` needs: stages, programs, prompts and host settings of its family."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewam.compile.compile import CompilePlan

DEFAULT_STEPS = {"policy": 10, "student": 2}  # the teacher's sampler, and what a student was distilled for


def compile_plan(
    policy: Path,
    backend: str = "onnxruntime",
    num_action_steps: int | None = None,
    prompts: tuple[str, ...] = (),
    threads: int = 2,
) -> CompilePlan:
    """Plan of a bundle.

    Args:
        policy: artifact of `train` (kind "policy") or `distill` (kind "student").
        backend: name of a compile backend.
        num_action_steps: Euler steps of the action sampler; by default 10 for a teacher, 2 for a student.
        prompts: instructions whose embeddings go into the bundle, besides those that the policy was trained on.
        threads: compute threads of the engines while the bundle proves itself.

    Raises:
        EdgewamError: the artifact is damaged or of another kind.
    """
    from edgewam.compile.compile import CompilePlan
    from edgewam.models import aha_wam
    from edgewam.models.text import SmallTextEncoder
    from edgewam.models.wan_vae_image import image_encoder
    from edgewam.training.policy_artifact import load_policy

    loaded = load_policy(policy)
    model, config = loaded.model, loaded.model.config
    steps = num_action_steps or DEFAULT_STEPS[loaded.manifest.kind]
    stages = aha_wam.stages(model, image_encoder(loaded.vae), loaded.stats.state, loaded.stats.action)
    text = SmallTextEncoder(config.text_dim, config.text_len)
    names = dict.fromkeys((*loaded.config["tasks"], *prompts))
    layout: dict[str, Any] = loaded.config["layout"]
    return CompilePlan(
        family=aha_wam.FAMILY,
        stages=tuple(stages.values()),
        programs=aha_wam.programs(model, steps),
        backend=backend,
        host=aha_wam.host_config(config) | {"max_offset": layout["max_offset"]},
        policy=aha_wam.FAMILY,
        prompts={name: text.encode(name) for name in names},
        config={"num_action_steps": steps, "precision": "fp32", "trained_as": loaded.manifest.kind},
        parents={loaded.manifest.kind: loaded.manifest.digest},
        threads=threads,
    )

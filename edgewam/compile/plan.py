"""What becomes a bundle: stages, programs, backend and everything that goes with them; made from a family's own functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from edgewam.compile.build_options import ANY_MACHINE, BuildOptions
from edgewam.compile.rewrites import rewrite, rewrite_fitting
from edgewam.core import plugins
from edgewam.core.program import Programs
from edgewam.core.stage import Stage

Arrays = Mapping[str, npt.NDArray[Any]]
Calls = Sequence[tuple[str, Arrays]]


@dataclass(frozen=True)
class CompilePlan:
    """Everything that becomes a bundle.

    stages: by name, in the order in which they first run.  host: what the policy's host code needs.  prompts: prompt ->
    inputs of the program `prompt`.  policy: plugin that drives the programs.
    calls: golden program runs in order; without them the policy rehearses, and without a policy inputs are random.
    config: further facts for the manifest, such as the number of action steps.
    build_options: what the backend is told besides the stages: the device to build for, or to run on here.
    """

    family: str
    stages: Mapping[str, Stage]
    programs: Programs
    backend: str
    host: Mapping[str, Any] = field(default_factory=dict)
    policy: str | None = None
    prompts: Mapping[str, Arrays] = field(default_factory=dict)
    calls: Calls | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)
    threads: int = 2
    build_options: BuildOptions = ANY_MACHINE

    def describe(self) -> dict[str, Any]:
        """What `--dry-run` prints: stages with their costs and how often each program calls them; nothing is computed."""
        stages = {}
        for stage in self.stages.values():
            calls = {name: program.num_calls(stage.name) for name, program in self.programs.programs.items()}
            stages[stage.name] = {
                "inputs": {spec.name: str(spec) for spec in stage.inputs},
                "outputs": {spec.name: str(spec) for spec in stage.outputs},
                "weight_bytes": stage.cost.weight_bytes,
                "flops": stage.cost.flops,
                "calls": {name: count for name, count in calls.items() if count},
            }
        weight_bytes = sum(stage.cost.weight_bytes for stage in self.stages.values())
        constant_bytes = sum(array.nbytes for array in self.programs.constants.values())
        return {
            "family": self.family,
            "backend": self.backend,
            "stages": stages,
            "weight_bytes": weight_bytes,
            "constant_bytes": constant_bytes,
            "state_bytes": sum(state.spec.size_bytes for state in self.programs.states),
            # the reference model, the engines and one export at a time are in memory together
            "memory_estimate_bytes": 3 * weight_bytes + constant_bytes,
        }


def plan_policy(
    family: str,
    model: Any,
    backend: str,
    *,
    num_action_steps: int,
    prompts: Arrays,
    program_arguments: Mapping[str, Any] | None = None,
    stage_arguments: Mapping[str, Any] | None = None,
    host: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    parents: Mapping[str, str] | None = None,
    threads: int = 2,
    rewrites: Sequence[str] | None = (),
    without: Sequence[str] = (),
    text_bucket: int | None = None,
) -> CompilePlan:
    """A compile plan from a family's own functions.

    Args:
        family: plugin in `models/` with stages(model, **stage_arguments), programs(model, num_action_steps),
            host_config(config) and prompt_inputs(config, embedding).
        model: built or loaded by the family.
        backend: name of a backend.
        num_action_steps: solver steps per chunk.
        prompts: prompt -> text embedding as the family's text encoder gives it.
        program_arguments: what the family's programs need besides the model and the steps, such as the rounding of tables.
        stage_arguments: what the family's stages need besides the model, such as normalizers.
        host: further entries of the host section, beyond those of the family.
        config: further facts for the manifest.
        parents: role -> digest of the artifacts that the model came from.
        threads: CPU threads of the engines in the checks.
        rewrites: exact rewrites to apply, by name (`compile/rewrites.py`); None for all that fit the stages.
        without: names that None leaves out.
        text_bucket: words that a prompt may have in the bundle; by default the family's number.
    """
    module = plugins.load("family", family)
    bucket = {} if text_bucket is None else {"text_bucket": text_bucket}
    stages = module.stages(model, **(stage_arguments or {}), **bucket)
    if rewrites is None:
        stages, chosen = rewrite_fitting(stages, without)
    else:
        stages, chosen = rewrite(stages, rewrites), tuple(rewrites)
    return CompilePlan(
        family=family,
        stages=stages,
        programs=module.programs(model, num_action_steps, **(program_arguments or {}), **bucket),
        backend=backend,
        host={**module.host_config(model.config, **bucket), **(host or {})},
        policy=family if family in plugins.names("policy") else None,
        prompts={prompt: module.prompt_inputs(model.config, embedding, **bucket) for prompt, embedding in prompts.items()},
        config={
            "num_action_steps": num_action_steps, "precision": "fp32", **({"rewrites": list(chosen)} if chosen else {}),
            **(config or {}),
        },
        parents=parents or {},
        threads=threads,
    )  # fmt: skip

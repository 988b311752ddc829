"""What a shrink has won: size, steps, time of a chunk before and after, and how far the actions moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewam.core.artifacts import read_manifest
from edgewam.core.errors import GateError
from edgewam.core.estimate import tree_bytes
from edgewam.recipes.shrink import Shrink

if TYPE_CHECKING:
    from edgewam.runtime.bundle import Bundle

_ROUNDS = 10  # blocks in which before and after take turns


def compare_chunks(plan: Shrink, after: Bundle) -> dict[str, Any]:
    """L_chunk of the checkpoint in PyTorch at its own number of steps and of the bundle, in turns in this process.

    Returns:
        before and after: timing, steps, backend, weight bytes; speedup by p50; the contract of the bundle's figure.
    """
    import torch

    from edgewam.core import plugins
    from edgewam.profiles.measure import measure_blocks
    from edgewam.recipes.deploy import compile_plan
    from edgewam.runtime.backends.eager import TorchEngine
    from edgewam.runtime.bundle import Bundle
    from edgewam.runtime.measure import contract_of
    from edgewam.runtime.pipeline import Pipeline

    torch.set_num_threads(plan.threads)
    source = compile_plan(plan.checkpoint, "eager", plan.own_steps, threads=plan.threads)
    engines = {name: TorchEngine(stage) for name, stage in source.stages.items()}
    pipeline = Pipeline(source.programs, source.stages, engines)
    before = Bundle(
        source.family, "eager", source.policy, source.host, source.stages, engines, pipeline, source.prompts, after.options
    )
    sides = {"before": before, "after": after}
    assert source.policy is not None, "every family that is distilled has a policy"
    calls = {name: plugins.load("policy", source.policy).timed_calls(b)["L_chunk"] for name, b in sides.items()}
    rounds = min(_ROUNDS, plan.num_timed)
    timings = measure_blocks(calls, plan.num_timed, rounds)
    steps = {"before": plan.own_steps, "after": plan.num_action_steps}
    found: dict[str, Any] = {
        name: {
            "backend": bundle.backend,
            "num_action_steps": steps[name],
            "weight_bytes": sum(stage.cost.weight_bytes for stage in bundle.stages.values()),
            "L_chunk": timings[name].to_json(),
        }
        for name, bundle in sides.items()
    }
    program = plugins.load("policy", source.policy).FIGURE_PROGRAMS["L_chunk"]
    contract = contract_of(after, "L_chunk", program, plan.num_timed, 0).to_json()
    return {**found, "speedup": timings["before"].p50_ms / timings["after"].p50_ms, "contract": contract}


def require_gates(plan: Shrink) -> None:
    """Raise GateError when the validation found a failure."""
    failures = read_manifest(plan.work / "validation", kind="validation").measured["failures"]
    if failures:
        what = "; ".join(f"against the {side}: {text}" for side, text in failures.items())
        raise GateError(
            f"'{plan.out}' was not put in place. {what} The intermediate artifacts are in '{plan.work}': look at "
            f"'{plan.work / 'validation'}', then run again with other settings, such as more --minutes; what fits is kept."
        )


def summary(plan: Shrink) -> dict[str, Any]:
    """The table of what was won, as plain JSON."""
    from edgewam.recipes.shrink_steps import read_report
    from edgewam.training.policy_artifact import load_policy

    bundle = read_manifest(plan.out, kind="bundle", verify=False)
    timed = read_manifest(plan.work / "profile", kind="profile").measured
    judged = read_report(plan.work / "validation")
    needed = [plan.checkpoint, load_policy(plan.checkpoint).vae_path, *_bases(plan.checkpoint)]
    return {
        "bundle": str(plan.out),
        "digest": bundle.digest,
        "checkpoint": {"path": str(plan.checkpoint), "kind": plan.origin.kind, "digest": plan.origin.digest},
        "target": plan.target.to_json(),
        "work": str(plan.work),
        "disk_bytes": {"before": sum(map(tree_bytes, needed)), "after": tree_bytes(plan.out)},
        "before": timed["before"],
        "after": timed["after"],
        "speedup": timed["speedup"],
        "contract": timed["contract"],
        "excess_error": {side: report["actions"] for side, report in judged.items()},
    }


def _bases(policy: Path) -> list[Path]:
    """The artifacts that a policy stores only its differences from; it cannot be loaded without them."""
    from edgewam.models.checkpoints import SIZES

    base = json.loads((policy / SIZES).read_text()).get("base")
    if not base:
        return []
    below = policy / base["path"]
    return [below, *_bases(below)]

"""A planner refresh as several stages, one per group of layers: a background program that an action chunk can pass between.

The groups fill one context by rows.  Also the way to build engines of a planner that is too large for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

from edgewam.core.errors import EdgewamError
from edgewam.core.program import Call, Programs
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.models.planner_stage import PlannerGroup, PlannerStage, PrefillStage
from edgewam.models.stage_cost import make_stage

PLANNER, CONTEXT = "planner", "context"


def in_layer_groups(stages: Mapping[str, Stage], programs: Programs, num_groups: int) -> tuple[dict[str, Stage], Programs]:
    """Split the stage `planner` into `planner_0_5`, `planner_5_10`, ... and the call of it into theirs; bitwise the same.

    Rewrites and quantisation come before: a group shares the layers it is given.

    Raises:
        EdgewamError: a policy without a planner, one whose planner is part of `act`, or a number of groups that its layers do
            not have.
    """
    planner = stages[PLANNER].function if PLANNER in stages else None
    if isinstance(planner, PrefillStage):
        raise EdgewamError(
            "This family's planner runs inside every chunk, so there is no refresh beside them that groups could make way for. "
            "Leave the layer groups out."
        )
    if not isinstance(planner, PlannerStage):
        raise EdgewamError(f"There is no planner to split among the stages {', '.join(stages)}. Leave the layer groups out.")
    num_layers = len(planner.qkv)
    if not 1 <= num_groups <= num_layers:
        raise EdgewamError(f"A planner of {num_layers} layers has 1 to {num_layers} groups, not {num_groups}.")
    bounds = [round(number * num_layers / num_groups) for number in range(num_groups + 1)]
    groups = [_group(stages[PLANNER], planner, first, last) for first, last in pairwise(bounds)]
    out = {name: stage for name, stage in stages.items() if name != PLANNER} | {group.name: group for group in groups}
    plan = programs.programs["plan"]
    steps = [
        part
        for step in plan.setup
        for part in (_calls(step, groups) if isinstance(step, Call) and step.stage == PLANNER else [step])
    ]
    return out, replace(programs, programs={**programs.programs, "plan": replace(plan, setup=tuple(steps))})


def _group(whole: Stage, planner: PlannerStage, first: int, last: int) -> Stage:
    """The stage of layers `first` to `last` - 1; of memory and text it reads its own layers only, which its cost counts."""
    module = PlannerGroup(planner, first, last)
    num_layers = len(planner.qkv)
    hidden = TensorSpec("hidden", (whole.input("frame_cos").shape[0], planner.patch.out_features))
    start = whole.input("latent") if first == 0 else hidden
    context = whole.output(CONTEXT)
    part = TensorSpec(CONTEXT, (last - first, *context.shape[1:]), context.dtype)
    outputs = (part,) if last == num_layers else (replace(hidden, name="hidden_next"), part)
    inputs = (start, *whole.inputs[1:])
    stage = make_stage(f"{PLANNER}_{first}_{last}", module, inputs, outputs, whole.cost.rows)
    unread = sum(whole.input(name).size_bytes for name in ("memory", "planner_text")) * (1 - (last - first) / num_layers)
    return replace(stage, cost=replace(stage.cost, io_bytes=stage.cost.io_bytes - round(unread)))


def _calls(call: Call, groups: list[Stage]) -> list[Call]:
    """The calls of all groups in place of that of the whole planner."""
    calls, row, hidden = [], 0, ""
    target = call.outputs[CONTEXT]
    for group in groups:
        inputs = {spec.name: call.inputs.get(spec.name, hidden) for spec in group.inputs}
        size = group.output(CONTEXT).shape[0]
        outputs = {CONTEXT: f"{target}[{row}:{row + size}]"}
        if len(group.outputs) > 1:
            hidden = f"hidden_{group.name}"
            outputs["hidden_next"] = hidden
        calls.append(Call(group.name, inputs, outputs))
        row += size
    return calls

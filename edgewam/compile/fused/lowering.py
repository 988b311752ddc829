"""Which stages become recipes of fused kernels, and of the others why not."""

from __future__ import annotations

from typing import Any

from edgewam.compile.fused.builder import Lowered, NotLowered
from edgewam.compile.fused.lower_denoise import lower_denoise
from edgewam.compile.fused.lower_planner import lower_planner
from edgewam.compile.fused.lower_router import lower_router
from edgewam.compile.fused.lower_state import lower_state
from edgewam.compile.rewritten_router import Router, take_apart
from edgewam.core.stage import Stage
from edgewam.models.aha_wam_stages import RouterStage
from edgewam.models.planner_stage import PlannerGroup, PlannerStage, PrefillStage
from edgewam.models.wam_stages import BeginStage, DenoiseStage, FinishStage, ImageStage, StatesStage, StateStage, TextStage
from edgewam.quantize.steps import SteppedStage

_LOWERINGS: tuple[tuple[tuple[type, ...], Any], ...] = (
    ((DenoiseStage,), lower_denoise),
    ((PlannerStage, PlannerGroup, PrefillStage), lower_planner),
    ((Router,), lower_router),
    ((StateStage, StatesStage), lower_state),
)
_LEFT = {
    TextStage: "it runs once per instruction",
    ImageStage: "it is made of convolutions",
    BeginStage: "it is a few element-wise operators on one chunk",
    FinishStage: "it is a few element-wise operators on one chunk",
}


def lower(stage: Stage) -> Lowered:
    """The recipe of a stage.

    Raises:
        NotLowered: the stage is of another kind, or has a layer of another form; the message goes on "..., so it stays a program
            of PyTorch".
    """
    module = stage.function
    if isinstance(module, SteppedStage):
        module = module.inner
    if isinstance(module, RouterStage):
        module = take_apart(module)
    for kinds, function in _LOWERINGS:
        if isinstance(module, kinds):
            lowered: Lowered = function(stage, module)
            return lowered
    raise NotLowered(_LEFT.get(type(module), f"it is a {type(module).__name__}, which no kernels were written for"))

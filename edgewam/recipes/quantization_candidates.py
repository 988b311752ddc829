"""Every layer in every format that a plan tries, ready to be judged, and what each costs in accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgewam.core import plugins

if TYPE_CHECKING:
    from edgewam.quantize.layers import LayerName
    from edgewam.quantize.record import Recording
    from edgewam.recipes.quantization import QuantizePlan
    from edgewam.recipes.quantization_judge import Judge, Report

    Candidates = dict[tuple[LayerName, str], Any]

# excess error ratio of a layer below which `auto` looks for nothing more exact: eighty of them make 0.018 together
_EXACT_ENOUGH = 0.002
# formats whose weights GPTQ rounds -> whose grid they share; what SmoothQuant scales has other weights
_ROUNDED = {
    "int8_dynamic": "int8_weights",
    "int8_weights": "int8_weights",
    "fp8_weights": "fp8_weights",
    "int4_weights": "int4_weights",
}


def make_candidates(plan: QuantizePlan, recording: Recording, say: Report) -> Candidates:
    """(layer, format) -> the layer in that format; for `auto`, linear layers also in the formats that need no calibration."""
    from torch import nn

    from edgewam.quantize.calibrate import calibrate
    from edgewam.quantize.formats import FORMATS
    from edgewam.quantize.layers import Scales, quantized
    from edgewam.quantize.weight_rounding import round_weights

    stages = plan.source.stages
    scales = calibrate(
        stages, plan.formats, recording, plan.precision.alpha, plan.precision.percentile,
        lambda done, total: say("calibrating", done, total), plan.precision.per_step,
    )  # fmt: skip
    tried = {(name, found.format): found for name, found in scales.items()}
    if plan.name == "auto":
        linear = [name for name in scales if isinstance(plan.layers[name], nn.Linear)]
        able = plugins.load("backend_build", plan.precision.backend).FORMATS
        free = [kind for kind in able if not FORMATS[kind].calibrated]
        tried |= {(name, kind): Scales(kind) for name in linear for kind in free}
    tried = {key: replace(found, group=plan.precision.group) for key, found in tried.items()}
    rounded: dict[tuple[LayerName, str], Any] = {}
    for grid in dict.fromkeys(_ROUNDED.values()):
        names = dict.fromkeys(name for name, kind in tried if _ROUNDED.get(kind) == grid)
        found = round_weights(
            stages,
            names,
            recording,
            lambda done, total: say("rounding weights", done, total),
            FORMATS[grid],
            plan.precision.group,
        )
        rounded |= {(name, grid): codes for name, codes in found.items()}
    return {
        (name, kind): quantized(plan.layers[name], scale, *rounded.get((name, _ROUNDED.get(kind, "")), ()))
        for (name, kind), scale in tried.items()
    }


def measure_errors(plan: QuantizePlan, candidates: Candidates, judge: Judge, say: Report) -> Mapping[Any, float]:
    """Error of every candidate alone; `auto` drops weight-only candidates of layers that have an exact enough other one."""
    late = {key for key in candidates if plan.name == "auto" and key[1] == "int8_weights"}
    errors = judge.each([(*key, layer) for key, layer in candidates.items() if key not in late], say)
    best: dict[LayerName, float] = {}
    for (name, _), error in errors.items():
        best[name] = min(error, best.get(name, error))
    for key in [key for key in late if best.get(key[0], 1.0) <= _EXACT_ENOUGH]:
        del candidates[key]
    return errors | judge.each([(*key, layer) for key, layer in candidates.items() if key in late], say)

"""Recipes in other weight formats: the same calls with packed weights, as the stages of a quantised policy are lowered.

Activation scales come from one run of the plain recipe; a policy's own come from calibration.  Speed is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.fused_engines import plain_call
from benchmarks.gpu.kernel_recipes import Lowered, empty, operands
from edgewam.kernels.call import Call, Recipe, View
from edgewam.kernels.reference import EPS
from edgewam.kernels.weights import LARGEST, pack
from edgewam.profiles.plan_costs import UNSTEADY_STAGES
from edgewam.quantize.named import NARROW

PLAIN = "bf16"  # the stage's own dtype, whatever it is
_LEAST_RANGE = 1e-6  # an input that is always zero needs a scale that is no zero


@dataclass(frozen=True)
class WeightFormat:
    """weights: of `kernels.weights`; group: inputs that share a scale, 0 for all.  activations: 8 bits, or "" as they are."""

    weights: str
    group: int = 0
    activations: str = ""


FORMATS: Mapping[str, WeightFormat | None] = {
    PLAIN: None,
    "fp8_weights": WeightFormat("fp8"),
    "fp8": WeightFormat("fp8", activations="fp8"),
    "int8": WeightFormat("int8", activations="int8"),
    "int4_weights": WeightFormat("int4", group=64),
}


def in_format(lowered: Lowered, name: str, ranges: Mapping[str, float] | None = None) -> Lowered:
    """The stage with the weights of its products packed; itself for `bf16`.  Where calibration sees too little only weights are.

    ranges: largest input of each product, by the name of its weight; without, activation scales are tensors without a value.
    """
    kind = FORMATS[name]
    if kind is None:
        return lowered
    rounding = "" if lowered.stage.name in UNSTEADY_STAGES else kind.activations
    weights, views, calls = dict(lowered.weights), dict(lowered.recipe.views), []
    for call in lowered.recipe.calls:
        if is_packable(lowered, call, kind.group):
            weight = call.operands["weight"]
            base = lowered.base(weight)
            if f"{base} scale" not in weights:
                packed = pack(lowered.weights[base], kind.weights, kind.group, base)
                assert packed.scale is not None
                weights |= {base: packed.codes, f"{base} scale": packed.scale}
            roles, attributes = {**call.operands, "weight_scale": f"{base} scale"}, dict(call.attributes)
            if weight != base:  # one tensor seen as the weights of several layers
                seen, roles["weight_scale"] = views[weight], f"{weight} scale"
                views |= {weight: _seen(seen, base, weights), f"{weight} scale": _seen(seen, f"{base} scale", weights)}
            if rounding:
                roles["input_scale"], attributes["activations"] = f"{base} input_scale", rounding
                weights[f"{base} input_scale"] = _input_scale(weights[base], rounding, base, ranges)
            call = Call(call.op, roles, attributes)
        calls.append(call)
    return replace(lowered, weights=weights, recipe=Recipe(lowered.recipe.workspaces, views, tuple(calls)))


def is_packable(lowered: Lowered, call: Call, group: int = 0) -> bool:
    """Whether a call is a product whose weight is wide enough to be worth packing, and can be (the rules of `quantize.named`)."""
    weight = lowered.weights.get(lowered.base(call.operands.get("weight", "")))
    if call.op != "linear" or weight is None:
        return False
    return min(weight.shape[-2:]) >= NARROW and weight.shape[-1] % (group or 1) == 0


def input_ranges(lowered: Lowered, inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """Largest magnitude that each packable product sees, by the name of its weight, while the calls run in plain PyTorch."""
    (device,) = {str(tensor.device) for tensor in inputs.values()}
    made = {spec.name: empty(spec, device) for spec in (*lowered.stage.outputs, *lowered.recipe.workspaces.values())}
    tensors = lowered.recipe.resolve({**made, **lowered.weights, **inputs})
    found: dict[str, Tensor] = {}
    for call in lowered.recipe.calls:
        given = operands(call, tensors)
        if is_packable(lowered, call):
            weight, seen = lowered.base(call.operands["weight"]), product_input(call, given).abs().amax()
            found[weight] = torch.maximum(seen, found[weight]) if weight in found else seen
        plain_call(lowered, call, tensors)()
    return {name: float(seen) for name, seen in found.items()}


def product_input(call: Call, given: Mapping[str, Tensor]) -> Tensor:
    """What the product of a `linear` reads, before rounding; with both modulations where there are two."""
    x = given["x"].float()
    if call.attributes.get("norm", False):
        x = F.layer_norm(x, x.shape[-1:], eps=float(call.attributes.get("eps", EPS)))
    if "scale" not in given:
        return x
    parts = [x * given[f"{kind}scale"] + given[f"{kind}shift"] for kind in ("", "clean_") if f"{kind}scale" in given]
    return torch.stack(parts)


def _seen(view: View, of: str, weights: Mapping[str, Tensor]) -> View:
    """The view of a weight as (layers, out, in) on its codes or scales `of` [layers * out, ...]."""
    assert view.shape is not None and not view.at
    return View(of, (), (*view.shape[:2], *weights[of].shape[1:]))


def _input_scale(codes: Tensor, activations: str, weight: str, ranges: Mapping[str, float] | None) -> Tensor:
    if ranges is None or codes.is_meta:
        return torch.empty(1, device="meta")
    return torch.full((1,), max(ranges[weight], _LEAST_RANGE) / LARGEST[activations], device=codes.device)

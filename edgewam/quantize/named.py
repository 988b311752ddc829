"""The named plans `int8`, `fp8`, `fp8_weights` and `int4_weights`, written for the layers at hand; `auto` is chosen from
measurements (`choose`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from edgewam.core.errors import ContractError
from edgewam.quantize.formats import FORMATS, GROUPS, NONE, WEIGHTS_ONLY
from edgewam.quantize.layers import Layer, LayerName
from edgewam.quantize.plan import PrecisionPlan, Rule

NAMED = ("int8", "fp8", "fp8_weights", "int4_weights", "auto")
# Robot states and actions, first pixels: a projection from or to so few numbers costs nothing and everything passes through it.
NARROW = 32
_NARROW_CHANNELS = 8
_NARROW_REASON = "narrow: nothing to gain and sensitive"
_UNSTEADY_REASON = "calibration sees too little of this stage"
_CONVOLUTIONS = "convolutions: only worth it where it was measured, see auto"
_UNEVEN_REASON = f"its inputs are no multiple of {GROUPS[0]}, the group that shares a scale"
# that a named plan is for, unless another one is asked for
BACKENDS = {"int8": "onnxruntime", "fp8": "eager", "fp8_weights": "fused", "int4_weights": "fused"}
# backends that multiply W8A8 with static scales only: what calibration sees too little of stays in the base precision there
_STATIC_ONLY = ("tensorrt",)
_WEIGHTS_ALONE = ("fused",)  # and those that may leave activations as they are: there the weights of such stages are packed


def candidates(layers: Mapping[LayerName, Layer], unsteady: Collection[str] = ()) -> PrecisionPlan:
    """What `auto` tries first: all but narrow layers, convolutions with static activations where calibration sees enough.

    Static linear layers are not tried: on ONNX Runtime they are no faster than dynamic ones and mostly less exact
    (benchmarks/NOTES.md).
    """

    def rule(key: LayerName, layer: Layer) -> Rule:
        if is_narrow(layer):
            return Rule(*key, NONE, _NARROW_REASON)
        if not isinstance(layer, nn.Conv2d):
            return Rule(*key, "int8_dynamic")
        return Rule(*key, NONE, _UNSTEADY_REASON) if key[0] in unsteady else Rule(*key, "int8")

    return PrecisionPlan("auto", "onnxruntime", tuple(rule(key, layer) for key, layer in layers.items()))


def named_plan(
    name: str, layers: Mapping[LayerName, Layer], unsteady: Collection[str] = (), backend: str | None = None
) -> PrecisionPlan:
    """The rules of a named plan.

    Args:
        name: `int8` or `fp8`, weights and activations, static scales; `fp8_weights` or `int4_weights`, nothing but weights, for
            kernels that are bound by their bytes.  All leave convolutions alone.  `fp8` has a scale per step
            in the sampler's loop; INT8 gained nothing by that (benchmarks/NOTES.md), so there a plan file has to ask for it.
        layers: what there is to quantise.
        unsteady: stages of which calibration sees too little, such as those that run once per instruction, or on a single
            row.  Their activations are measured when they come: with static ranges one unseen joint position made an error
            of twice the policy's own spread.  A backend without dynamic activations leaves them as they are.
        backend: that will run it, by default the one of `BACKENDS`.

    Raises:
        ContractError: another name.
    """
    if name not in BACKENDS:
        raise ContractError(f"There is no plan '{name}'. Named plans: {', '.join(NAMED)}; or give the path of a plan file.")
    backend = backend or BACKENDS[name]
    rules = [Rule(*key, NONE, _NARROW_REASON) for key, layer in layers.items() if is_narrow(layer)]
    for stage in dict.fromkeys(stage for stage, _ in layers):
        own = [layer for (s, _), layer in layers.items() if s == stage and not is_narrow(layer)]
        if not own:
            continue
        convolutions = [key for key, layer in layers.items() if _is_conv(key, stage, layer)]
        if convolutions and len(convolutions) == len(own):
            rules.append(Rule(stage, "*", NONE, _CONVOLUTIONS))
            continue
        rules += [Rule(*key, NONE, _CONVOLUTIONS) for key in convolutions]
        if FORMATS[name].bits < 8:
            uneven = [key for key, layer in layers.items() if key[0] == stage and _is_uneven(layer)]
            rules += [Rule(*key, NONE, _UNEVEN_REASON) for key in uneven]
        if name in WEIGHTS_ONLY or stage not in unsteady:
            rules.append(Rule(stage, "*", name))
        elif backend in _WEIGHTS_ALONE:
            rules.append(Rule(stage, "*", f"{name}_weights", _UNSTEADY_REASON))
        elif backend in _STATIC_ONLY:
            rules.append(Rule(stage, "*", NONE, _UNSTEADY_REASON))
        elif name == "int8":
            rules.append(Rule(stage, "*", "int8_dynamic", _UNSTEADY_REASON))
        else:
            rules.append(Rule(stage, "*", name))
    return PrecisionPlan(name, backend, tuple(rules), per_step=name == "fp8")


def is_narrow(layer: Layer) -> bool:
    """Whether a layer reads or writes too few numbers to be worth quantising."""
    if isinstance(layer, nn.Conv2d):
        return min(layer.in_channels, layer.out_channels) < _NARROW_CHANNELS
    return min(layer.in_features, layer.out_features) < NARROW


def _is_conv(key: LayerName, stage: str, layer: Layer) -> bool:
    return key[0] == stage and isinstance(layer, nn.Conv2d) and not is_narrow(layer)


def _is_uneven(layer: Layer) -> bool:
    return isinstance(layer, nn.Linear) and not is_narrow(layer) and layer.in_features % GROUPS[0] != 0

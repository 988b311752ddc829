"""Number formats of quantised layers and the rounding that defines them, in plain torch.

Weights have one scale per output channel, or (four bits) per group of an output's inputs; activations one per tensor.  All scales
are symmetric (TensorRT knows no other), but for `int8_dynamic`, whose activations are measured anew in every call as ONNX's
DynamicQuantizeLinear defines it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NONE = "none"  # the layer stays as it is
GROUPS = (64, 128)  # inputs that may share a scale in a format with `bits` below 8
_TINY = 1e-12  # a channel of zeros needs a scale that is no zero
_MAX_BIAS = 2.0**30  # integer kernels keep the bias as int32 in units of weight scale x activation scale


@dataclass(frozen=True)
class Format:
    """`largest` magnitude of a code; `calibrated`: activation scales come from data; `convolutions` too.

    rounds_inputs: W8A8; without, only the weights are rounded.  bits: of a weight as it is stored; below 8 the inputs of an
    output are in groups with a scale each.
    """

    name: str
    dtype: torch.dtype
    largest: float
    calibrated: bool
    convolutions: bool
    description: str
    rounds_inputs: bool = True
    bits: int = 8


FORMATS = {
    f.name: f
    for f in (
        Format("int8", torch.int8, 127.0, True, True, "INT8 weights and activations, static scales, SmoothQuant"),
        Format("int8_dynamic", torch.int8, 127.0, False, False, "INT8 weights; activation scale from each call's own range"),
        Format(
            "int8_weights", torch.int8, 127.0, False, False, "INT8 weights; activations and products stay floats",
            rounds_inputs=False,
        ),
        Format("fp8", torch.float8_e4m3fn, 448.0, True, False, "FP8 E4M3 weights and activations, static scales"),
        Format(
            "fp8_weights", torch.float8_e4m3fn, 448.0, False, False, "FP8 E4M3 weights; activations and products stay floats",
            rounds_inputs=False,
        ),
        Format(
            "int4_weights", torch.int8, 7.0, False, False, "INT4 weights with a scale per group; activations stay floats",
            rounds_inputs=False, bits=4,
        ),
    )
}  # fmt: skip
WEIGHTS_ONLY = tuple(name for name, kind in FORMATS.items() if not kind.rounds_inputs)


def encode(values: Tensor, scale: Tensor, kind: Format) -> Tensor:
    """Codes of `values` in `kind.dtype`; `scale` broadcasts.  Integers are rounded half to even and saturate (-128 and 127)."""
    scaled = values / scale
    if kind.dtype == torch.int8:
        return scaled.round().clamp(-kind.largest - 1, kind.largest).to(torch.int8)
    return scaled.clamp(-kind.largest, kind.largest).to(kind.dtype)


def rounded(values: Tensor, scale: Tensor, kind: Format) -> Tensor:
    """`values` after a round trip through their codes, float32: fake quantisation."""
    if kind.dtype == torch.int8:  # without the detour over int8: the same numbers, and exporters see plain arithmetic
        return (values / scale).round().clamp(-kind.largest - 1, kind.largest) * scale
    return encode(values, scale, kind).float() * scale


def rounded_dynamically(values: Tensor) -> Tensor:
    """`values` after uint8 codes over their own range, which always holds zero (ONNX DynamicQuantizeLinear)."""
    low, high = values.amin().clamp_max(0.0), values.amax().clamp_min(0.0)
    scale = ((high - low) / 255).clamp_min(_TINY)
    zero = (-low / scale).round().clamp(0, 255)
    return (((values / scale).round() + zero).clamp(0, 255) - zero) * scale


def weight_scales(
    weight: Tensor, bias: Tensor | None, input_scale: Tensor | None, kind: Format, group: int = GROUPS[0]
) -> Tensor:
    """Scale per output channel [out] of a weight [out, ...]: its largest magnitude meets the largest code.

    A channel whose weights are so small that its bias would not fit int32 gets a larger scale.  In a format of less than 8 bits
    there is one per `group` of inputs, [out, in / group].
    """
    if kind.bits < 8:
        return (weight.unflatten(1, (-1, group)).abs().amax(2) / kind.largest).clamp_min(_TINY)
    scale = (weight.flatten(1).abs().amax(1) / kind.largest).clamp_min(_TINY)
    if bias is not None and input_scale is not None:
        scale = torch.maximum(scale, bias.abs() / (input_scale * _MAX_BIAS))
    return scale

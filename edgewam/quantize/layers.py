"""Quantised linear layers and convolutions: what a plan puts in the place of a stage's own layers.

A layer keeps its weight as float32 numbers that lie on the grid of its format, and rounds what comes in.  This is the
reference that integer engines are compared with; `codes` gives the bytes that are stored and that engines multiply.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from edgewam.core.errors import ContractError
from edgewam.core.stage import Stage
from edgewam.quantize.formats import FORMATS, Format, encode, rounded, rounded_dynamically, weight_scales

LayerName = tuple[str, str]  # stage, and the layer's path in the stage's module
Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Scales:
    """What calibration found out about one layer.

    input_scale and output_scale []: of one code; none for formats that measure at run time, output only of convolutions.
    smooth [in]: the input is multiplied with it, and the weight divided by it, before either is rounded (SmoothQuant).
    """

    format: str
    input_scale: Tensor | None = None
    output_scale: Tensor | None = None
    smooth: Tensor | None = None


class _Quantized:
    """What both kinds share; `codes` and `weight_scale` together are the weight."""

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor | None
    output_scale: Tensor | None
    smooth: Tensor | None
    kind: Format

    @property
    def codes(self) -> Tensor:
        """The weight in `kind.dtype`, of its own shape."""
        return encode(self.weight, _per_channel(self.weight_scale, self.weight), self.kind)

    @property
    def packed_bytes(self) -> int:
        """Bytes of codes and scales as they are stored."""
        scales = (self.weight_scale, self.input_scale, self.output_scale, self.smooth)
        return self.weight.numel() + sum(4 * s.numel() for s in scales if s is not None)

    def round_input(self, x: Tensor) -> Tensor:
        """What the layer's product sees of its input."""
        if self.smooth is not None:
            x = x * self.smooth
        if not self.kind.rounds_inputs:
            return x
        return rounded_dynamically(x) if self.input_scale is None else rounded(x, self.input_scale, self.kind)


class QuantizedLinear(_Quantized, nn.Linear):
    """[..., in] -> [..., out]."""

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return F.linear(self.round_input(input), self.weight, self.bias)


class QuantizedConv2d(_Quantized, nn.Conv2d):
    """[B, in, H, W] -> [B, out, H', W']; the result is rounded too, since integer convolutions give integers."""

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        out = self._conv_forward(self.round_input(input), self.weight, self.bias)
        assert self.output_scale is not None
        return rounded(out, self.output_scale, self.kind)


def quantized(layer: Layer, scales: Scales, codes: Tensor | None = None, weight_scale: Tensor | None = None) -> nn.Module:
    """A layer in the format of `scales`, with its own copy of the weight; `codes` and `weight_scale` when they are stored."""
    kind = FORMATS[scales.format]
    made = copy.copy(layer)
    made.__class__ = QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear
    made._parameters, made._buffers = dict(layer._parameters), dict(layer._buffers)
    weight = layer.weight.detach().float()
    if scales.smooth is not None:
        weight = weight / scales.smooth
    if weight_scale is None:
        bias = layer.bias.detach().float() if layer.bias is not None else None
        weight_scale = weight_scales(weight, bias, scales.input_scale, kind)
    spread = _per_channel(weight_scale, weight)
    if codes is None:
        codes = encode(weight, spread, kind)
    made.weight = nn.Parameter(codes.float() * spread, requires_grad=False)
    made.kind = kind  # type: ignore[assignment]
    values = {"weight_scale": weight_scale, "input_scale": scales.input_scale, "output_scale": scales.output_scale}
    for name, value in {**values, "smooth": scales.smooth}.items():
        made.register_buffer(name, value, persistent=False)
    return made


def find_layers(stages: Mapping[str, Stage]) -> dict[LayerName, Layer]:
    """Every linear layer and 2-D convolution of the stages, in the order of the road."""
    found: dict[LayerName, Layer] = {}
    for stage in stages.values():
        if isinstance(stage.function, nn.Module):
            for path, module in stage.function.named_modules():
                if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
                    continue
                if isinstance(module, nn.Linear | nn.Conv2d) and not isinstance(module, _Quantized):
                    found[stage.name, path] = module
    return found


def quantized_layers(stage: Stage) -> dict[str, QuantizedLinear | QuantizedConv2d]:
    """The quantised layers of a stage by path; empty for a stage that is as it was."""
    if not isinstance(stage.function, nn.Module):
        return {}
    modules = stage.function.named_modules()
    return {path: m for path, m in modules if isinstance(m, QuantizedLinear | QuantizedConv2d)}


def with_layers(stages: Mapping[str, Stage], layers: Mapping[LayerName, nn.Module]) -> dict[str, Stage]:
    """The stages with some layers replaced; those that change are copies, their cost holds the packed weights.

    Raises:
        ContractError: a name that no stage has.
    """
    out = dict(stages)
    for name in dict.fromkeys(stage for stage, _ in layers):
        if name not in stages or not isinstance(stages[name].function, nn.Module):
            raise ContractError(f"There is no stage '{name}' to quantise. Available: {', '.join(stages)}.")
        module = copy.deepcopy(stages[name].function)
        saved = 0
        for (stage, path), layer in layers.items():
            if stage == name:
                old = module.get_submodule(path)  # type: ignore[union-attr]
                saved += old.weight.numel() * old.weight.element_size() - layer.packed_bytes
                _replace(module, path, layer)  # type: ignore[arg-type]
        cost = replace(stages[name].cost, weight_bytes=stages[name].cost.weight_bytes - saved)
        out[name] = replace(stages[name], cost=cost, function=module)
    return out


def as_float(stage: Stage) -> Stage:
    """The stage with its quantised layers as plain float32 ones of the same names, for exporters; itself when it has none."""
    if not (layers := quantized_layers(stage)):
        return stage
    module = copy.deepcopy(stage.function)
    for path in layers:
        layer = module.get_submodule(path)  # type: ignore[union-attr]
        layer.__class__ = nn.Conv2d if isinstance(layer, QuantizedConv2d) else nn.Linear
        layer._buffers = {}
    return replace(stage, function=module)


@contextmanager
def exchanged(stages: Mapping[str, Stage], layers: Mapping[LayerName, nn.Module]) -> Iterator[None]:
    """Put layers into the stages' own modules for a while."""
    kept: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for (stage, path), layer in layers.items():
            module = stages[stage].function
            assert isinstance(module, nn.Module)
            kept.append((module, path, module.get_submodule(path)))
            _replace(module, path, layer)
        yield
    finally:
        for module, path, layer in reversed(kept):
            _replace(module, path, layer)


def _replace(module: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, layer)


def _per_channel(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (weight.dim() - 1))

"""The layers of stages that can be quantised: finding them, making quantised ones (`arithmetic`), and putting those in place."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edgewam.core.errors import ContractError
from edgewam.core.stage import Stage
from edgewam.quantize.arithmetic import FloatConv2d, FloatLinear, QuantizedConv2d, QuantizedLinear, ScaleRow, per_channel
from edgewam.quantize.formats import FORMATS, GROUPS, encode, weight_scales

LayerName = tuple[str, str]  # stage, and the layer's path in the stage's module
Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Scales:
    """What calibration found out about one layer.

    input_scale and output_scale []: of one code; none for formats that measure at run time, output only of convolutions.
    input_scale [steps]: one for every row of the loop that the layer's stage runs in (linear layers).
    smooth [in]: the input is multiplied with it, and the weight divided by it, before either is rounded (SmoothQuant).
    group: so many inputs share a scale in a format of less than 8 bits.
    """

    format: str
    input_scale: Tensor | None = None
    output_scale: Tensor | None = None
    smooth: Tensor | None = None
    group: int = GROUPS[0]


def quantized(layer: Layer, scales: Scales, codes: Tensor | None = None, weight_scale: Tensor | None = None) -> nn.Module:
    """A layer in the format of `scales`, with its own copy of the weight; `codes` and `weight_scale` when they are stored."""
    kind, device = FORMATS[scales.format], layer.weight.device
    made = copy.copy(layer)
    made.__class__ = QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear
    made._parameters, made._buffers = dict(layer._parameters), dict(layer._buffers)
    made.kind, made.base = kind, layer.weight.dtype  # type: ignore[assignment]
    made.is_stepped = scales.input_scale is not None and scales.input_scale.dim() == 1  # type: ignore[assignment]
    made.row, made.row_index = ScaleRow(), 0  # type: ignore[assignment]
    if made.is_stepped and (isinstance(layer, nn.Conv2d) or not kind.calibrated):
        raise ContractError(f"Scales per step exist for linear layers with static scales only, not for {scales.format} {layer}.")
    weight = layer.weight.detach().float()
    if scales.smooth is not None:
        weight = weight / scales.smooth.to(device)
    if weight_scale is None:
        # with one scale per step the bias is added to the scaled product, so it need not fit the integers
        bias = layer.bias.detach().float() if layer.bias is not None and not made.is_stepped else None
        input_scale = None if scales.input_scale is None else scales.input_scale.to(device)
        weight_scale = weight_scales(weight, bias, input_scale, kind, scales.group)
    weight_scale = weight_scale.to(device)
    spread = per_channel(weight_scale, weight)
    if codes is None:
        codes = encode(weight, spread, kind)
    made.weight = nn.Parameter(codes.to(device).float() * spread, requires_grad=False)
    step_scales, input_scale = (scales.input_scale, torch.ones(())) if made.is_stepped else (None, scales.input_scale)
    values = {"weight_scale": weight_scale, "input_scale": input_scale, "output_scale": scales.output_scale}
    for name, value in {**values, "smooth": scales.smooth, "step_scales": step_scales}.items():
        made.register_buffer(name, value if value is None else value.to(device), persistent=False)
    return made


def find_layers(stages: Mapping[str, Stage]) -> dict[LayerName, Layer]:
    """Every linear layer and 2-D convolution of the stages, in the order of the road."""
    found: dict[LayerName, Layer] = {}
    for stage in stages.values():
        if isinstance(stage.function, nn.Module):
            for path, module in stage.function.named_modules():
                if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
                    continue
                if isinstance(module, nn.Linear | nn.Conv2d) and not isinstance(module, QuantizedLinear | QuantizedConv2d):
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
        module = copied(stages[name].function)
        saved = 0
        for (stage, path), layer in layers.items():
            if stage == name:
                old = module.get_submodule(path)
                saved += old.weight.numel() * old.weight.element_size() - layer.packed_bytes  # type: ignore[union-attr,operator]
                replace_layer(module, path, layer)
        cost = replace(stages[name].cost, weight_bytes=stages[name].cost.weight_bytes - saved)
        out[name] = replace(stages[name], cost=cost, function=module)
    return out


def as_float(stage: Stage, placeholders: bool = False) -> Stage:
    """The stage with its quantised layers rounding no activations, for exporters; itself when it has none.

    They keep their names and their weights, float32 on the grid: plain layers in a float32 stage, `FloatLinear` or `FloatConv2d`
    where there is more around the product than a bias.  A backend then puts the rounding around the product that reads
    `<layer>.weight`, with the layer's `input_scale`; a bias that is not part of that product comes after it.

    placeholders: weights are one repeated zero, for a backend that replaces them by codes; a full-size stage is in memory once.
    """
    if not (layers := quantized_layers(stage)):
        return stage
    module = copied(stage.function)
    for path, layer in layers.items():
        # the copy's own layer, which reads the copy's own row of scales
        made, is_conv = module.get_submodule(path), isinstance(layer, QuantizedConv2d)
        if layer.base == torch.float32 and not layer.is_stepped:
            made.__class__ = nn.Conv2d if is_conv else nn.Linear
        else:
            made.__class__ = FloatConv2d if is_conv else FloatLinear
        made._buffers = {}
        if placeholders:
            made._parameters["weight"] = nn.Parameter(torch.zeros(()).expand(layer.weight.shape), requires_grad=False)
    return replace(stage, function=module)


def copied(module: object) -> nn.Module:
    """A module tree of its own around the same weights, which nothing here changes."""
    assert isinstance(module, nn.Module)
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


@contextmanager
def exchanged(stages: Mapping[str, Stage], layers: Mapping[LayerName, nn.Module]) -> Iterator[None]:
    """Put layers into the stages' own modules for a while."""
    kept: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for (stage, path), layer in layers.items():
            module = stages[stage].function
            assert isinstance(module, nn.Module)
            kept.append((module, path, module.get_submodule(path)))
            replace_layer(module, path, layer)
        yield
    finally:
        for module, path, layer in reversed(kept):
            replace_layer(module, path, layer)


def replace_layer(module: nn.Module, path: str, layer: nn.Module) -> None:
    """Put a layer at a path of a module."""
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, layer)

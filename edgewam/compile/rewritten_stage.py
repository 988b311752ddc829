"""What the exact rewrites share: taking a stage apart, giving it back with its cost recounted, folding constants into layers.

Folds are computed in float64 and rounded once to the weight's own dtype.  Nothing here allocates for weights on the meta device,
and no module that a rewrite was given is changed: what differs is a shallow copy, everything else is shared with it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from edgewam.core.errors import EdgewamError
from edgewam.core.stage import Stage
from edgewam.models.stage_cost import make_stage
from edgewam.quantize.layers import quantized_layers

Module = TypeVar("Module", bound=nn.Module)
Stages = Mapping[str, Stage]


class RewriteRefused(EdgewamError):
    """A rewrite does not know a stage that it would change, or it would gain nothing; the message says which and why."""


def module_of(stages: Stages, name: str, *kinds: type[Module]) -> Module:
    """The module of stage `name`, which must be one of `kinds`.

    Raises:
        RewriteRefused: there is no such stage, it is of another kind, or a layer of it is quantised already.
    """
    if name not in stages:
        raise RewriteRefused(
            f"there is no stage '{name}' among {', '.join(stages)}; rewrite a family that has it, before its planner is split"
        )
    stage = stages[name]
    if not isinstance(stage.function, kinds):
        known = " or ".join(kind.__name__ for kind in kinds)
        raise RewriteRefused(f"stage '{name}' is a {type(stage.function).__name__}; this rewrite knows {known}")
    if layers := quantized_layers(stage):
        raise RewriteRefused(
            f"stage '{name}' is quantised already ('{next(iter(layers))}'), and folding would leave the grid of its format; "
            "rewrite first, then quantise"
        )
    return stage.function


def with_modules(stages: Stages, modules: Mapping[str, nn.Module]) -> dict[str, Stage]:
    """The stages with some modules exchanged: same names, inputs, outputs and rows, costs counted anew."""
    out = dict(stages)
    for name, module in modules.items():
        old = stages[name]
        out[name] = make_stage(name, module, old.inputs, old.outputs, old.cost.rows)
    return out


def changed(module: Module, **parts: nn.Module | Tensor | None) -> Module:
    """A shallow copy of a module with some of its submodules and buffers replaced."""
    out = copy.copy(module)
    for kind in ("_modules", "_buffers", "_parameters"):
        setattr(out, kind, dict(getattr(module, kind)))
    for name, part in parts.items():
        setattr(out, name, part)
    return out


def linear(weight: Tensor, bias: Tensor, like: Tensor) -> nn.Linear:
    """A frozen linear layer of weight [out, in] and bias [out], rounded to the dtype of `like`."""
    with torch.device("meta"):
        out = nn.Linear(weight.shape[1], weight.shape[0])
    out.weight = nn.Parameter(weight.detach().to(like.dtype), requires_grad=False)
    out.bias = nn.Parameter(bias.detach().to(like.dtype), requires_grad=False)
    return out


def fold_affine(layer: nn.Linear, gain: Tensor, shift: Tensor, scale: float = 1.0) -> nn.Linear:
    """The layer that gives scale * layer(gain * x + shift) for x; gain and shift [in]."""
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    return linear(scale * weight * gain.double(), scale * (bias + weight @ shift.double()), layer.weight)


def fold_chain(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """The layer that gives second(first(x)) for x."""
    weight = second.weight.detach().double()
    bias = second.bias.detach().double() + weight @ first.bias.detach().double()
    return linear(weight @ first.weight.detach().double(), bias, second.weight)


def bare_norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    """The same norm without its weights, which went into the layer behind it."""
    return nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)

"""Stages as recipes of kernel calls, and random tensors for them: what the kernel jobs measure.

Recipes come from the backend's own lowering, so a shape here is a shape that runs.  On the meta device that costs no memory;
`drawn` then fills the tensors that are measured, each according to the role it plays.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.random_policy import sizes
from edgewam.compile.fused import NotLowered, lower
from edgewam.compile.rewrites import rewrite
from edgewam.core.observation import Normalizer
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.kernels.bound import split
from edgewam.kernels.call import PROGRAM, Call, Recipe
from edgewam.kernels.reference import REFERENCES, SQUARE_COLUMNS
from edgewam.models import aha_wam
from edgewam.models.wan_vae import WanVae
from edgewam.models.wan_vae_image import image_encoder

_MASKED = 0.25  # share of prefix rows: both modulations are used
# operands of an attention that hold the softmax scale: random ones are made as small as real ones are
_SCALED = {("text_attention", "kv"), ("router_attention", "asked")}


@dataclass(frozen=True)
class Lowered:
    """A stage as calls.  weights: by name, possibly on the meta device.  programs: pieces that are no op, by file name."""

    stage: Stage
    recipe: Recipe
    weights: Mapping[str, Tensor]
    programs: Mapping[str, Callable[..., Sequence[Tensor]]]

    def meta(self) -> dict[str, Tensor]:
        """Every tensor that is no view, on the meta device: inputs, outputs, workspaces, weights."""
        specs = (*self.stage.inputs, *self.stage.outputs, *self.recipe.workspaces.values())
        weights = {name: torch.empty_like(weight, device="meta") for name, weight in self.weights.items()}
        return {spec.name: empty(spec, "meta") for spec in specs} | weights

    def specs(self) -> dict[str, TensorSpec]:
        """The spec of every tensor that is no view."""
        return {name: TensorSpec.of(name, tensor) for name, tensor in self.meta().items()}

    @property
    def kept(self) -> set[str]:
        """Names of what lies in memory before a call of the stage: weights and inputs."""
        return {*self.weights, *(spec.name for spec in self.stage.inputs)}

    def base(self, name: str) -> str:
        """The tensor that a view is of."""
        while name in self.recipe.views:
            name = self.recipe.views[name].of
        return name

    def with_calls(self, calls: Iterable[Call]) -> Lowered:
        """The same with some of the calls only."""
        return replace(self, recipe=replace(self.recipe, calls=tuple(calls)))

    @property
    def ops(self) -> tuple[Call, ...]:
        """Its calls but the programs."""
        return tuple(call for call in self.recipe.calls if call.op != PROGRAM)


@functools.cache
def meta_stages(size: str, dtype: torch.dtype) -> dict[str, Stage]:
    """All stages of a size with every exact rewrite, without memory for their weights."""
    config, vae = sizes(size)
    unit = [Normalizer(np.zeros(n, np.float32), np.ones(n, np.float32)) for n in (config.proprio_dim, config.action_dim)]
    with torch.device("meta"):
        model = aha_wam.build(config).to(dtype)
        return rewrite(aha_wam.stages(model, image_encoder(WanVae(vae).to(dtype)), *unit))


def lowered_stages(stages: Mapping[str, Stage]) -> tuple[dict[str, Lowered], dict[str, str]]:
    """The stages that become calls, and of the others why not."""
    found, refused = {}, {}
    for name, stage in stages.items():
        try:
            made = lower(stage)
        except NotLowered as reason:
            refused[name] = str(reason)
        else:
            found[name] = Lowered(stage, made.recipe, made.weights, made.programs)
    return found, refused


def operands(call: Call, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Role -> tensor of one call, of all resolved tensors."""
    return {role: tensors[name] for role, name in call.operands.items()}


def expected(call: Call, given: Mapping[str, Tensor], double: bool = False) -> dict[str, Tensor]:
    """What the reference makes of a call, by role, new tensors in float32, or in float64 throughout."""
    reads, writes = split(call, given)
    if double:
        reads |= {role: reads[role].double() for role in ("x", "q", "qkv") if role in reads}
    return {role: value for role, value in REFERENCES[call.op](**reads, **call.attributes).items() if role in writes}


def by_reference(call: Call, given: Mapping[str, Tensor]) -> Callable[[], None]:
    """The call in plain PyTorch, writing where the kernel would."""

    def run() -> None:
        for role, value in expected(call, given).items():
            given[role].copy_(value)

    return run


def drawn(lowered: Lowered, device: str, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors for all names that the calls use, views resolved; weights that are real already stay as they are.

    Every value is of the size that a trained policy would have there, or codes of a full range, so that nothing is faster or more
    exact than it is in use.
    """
    generator = torch.Generator(device).manual_seed(seed)
    meta, tensors = lowered.meta(), {}
    resolved = lowered.recipe.resolve(meta)
    for call in lowered.recipe.calls:
        for role, name in call.operands.items():
            base = lowered.base(name)
            if base in tensors:
                continue
            weight = lowered.weights.get(base)
            if weight is not None and not weight.is_meta:
                tensors[base] = weight.to(device)
            else:
                tensors[base] = _random(call, role, operands(call, resolved), meta[base], device, generator)
    used = {name: view for name, view in lowered.recipe.views.items() if lowered.base(name) in tensors}
    return replace(lowered.recipe, views=used).resolve(tensors)


def empty(spec: TensorSpec, device: str) -> Tensor:
    """A tensor of a spec with whatever is in memory."""
    return torch.empty(spec.shape, dtype=getattr(torch, spec.torch_dtype), device=device)


def memory_bytes(lowered: Lowered, calls: Iterable[Call]) -> int:
    """Bytes that calls must read from memory: weights and the stage's inputs, each once; what calls hand on stays in a cache."""
    tensors, seen = lowered.recipe.resolve(lowered.meta()), {}
    for call in calls:
        for name in call.operands.values():
            if lowered.base(name) in lowered.kept:
                seen[name] = tensors[name].numel() * tensors[name].element_size()
    return sum(seen.values())


def _random(
    call: Call, role: str, given: Mapping[str, Tensor], like: Tensor, device: str, generator: torch.Generator
) -> Tensor:  # fmt: skip
    """One tensor of the shape and dtype of `like`, for a role of a call."""
    out = torch.empty(like.shape, dtype=like.dtype, device=device)
    if like.dtype == torch.bool:
        return torch.rand(like.shape, device=device, generator=generator) < _MASKED
    if not like.dtype.is_floating_point:
        low, high = (-127, 128) if like.dtype == torch.int8 else (0, 256)
        return out.random_(low, high, generator=generator)
    if role == "memory_bias":
        out.zero_()
        out[-1:] = -math.inf
        return out
    if role in ("weight_scale", "input_scale", "delta"):
        return out.fill_(_constant(call, role, given))
    if role == "squares":
        return out.uniform_(0.5 * SQUARE_COLUMNS, 1.5 * SQUARE_COLUMNS, generator=generator)
    if role in ("cos", "sin"):
        angle = out.uniform_(0.0, 2 * math.pi, generator=generator)
        return angle.cos() if role == "cos" else angle.sin()
    if out.element_size() == 1:
        return torch.randn(like.shape, device=device, generator=generator).to(like.dtype)
    return out.normal_(0.0, _spread(call, role, given, like), generator=generator)


def _spread(call: Call, role: str, given: Mapping[str, Tensor], like: Tensor) -> float:
    """Standard deviation of random values for a role."""
    if role == "weight":
        return float(like.shape[-1] ** -0.5)
    if role in ("gains", "memory") and "cos" in given:  # of queries and of keys, and such keys: they share the softmax scale
        return float((2 * given["cos"].shape[-1]) ** -0.25)
    if (call.op, role) in _SCALED:
        return float((given[role].shape[-1] / int(call.attributes["num_heads"])) ** -0.5)
    return 1.0


def _constant(call: Call, role: str, given: Mapping[str, Tensor]) -> float:
    """A scale that makes random codes weigh what random weights weigh, and inputs of eight deviations fit."""
    if role == "delta":
        return -0.5
    if role == "input_scale":
        return 8.0 / (448.0 if call.attributes["activations"] == "fp8" else 127.0)
    spread = {torch.int8: 127 / 3**0.5, torch.uint8: 16 / 12**0.5}.get(given["weight"].dtype, 1.0)
    return float(given["x"].shape[-1] ** -0.5 / spread)

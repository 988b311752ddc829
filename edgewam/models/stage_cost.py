"""What a stage costs, counted and not estimated: FLOPs by running it on the meta device, bytes from its parameters."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from edgewam.core.stage import Cost, Stage
from edgewam.core.tensor_spec import TensorSpec


def make_stage(name: str, module: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], rows: int) -> Stage:
    """A stage around a module, with its cost; `rows` is the row count of its main matrix products."""
    module.eval()
    return Stage(name, inputs, outputs, _cost(module, inputs, outputs, rows), module)


def _cost(module: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], rows: int) -> Cost:
    weights = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    metas = {key: torch.empty_like(value, device="meta") for key, value in weights.items()}
    arguments = tuple(torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="meta") for spec in inputs)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        results = functional_call(module, metas, arguments)
    for spec, result in zip(outputs, results, strict=True):
        spec.check(result)
    return Cost(
        weight_bytes=sum(value.numel() * value.element_size() for value in weights.values()),
        flops=counter.get_total_flops(),
        rows=rows,
        io_bytes=sum(spec.size_bytes for spec in (*inputs, *outputs)),
    )

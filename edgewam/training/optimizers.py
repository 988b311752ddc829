"""Optimiser groups, the learning-rate schedule and the weight average.

A task declares its parameters as groups; each group names AdamW or Muon (orthogonalised momentum, 2-D weights only).
Every group keeps its own base rate and all of them follow one schedule: linear warm-up on steps, then cosine on the
fraction of the run that is done, which may be measured in steps or in wall time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from edgewam.training.parallel import local, rows_of, sharded, whole


@dataclass(frozen=True)
class ParameterGroup:
    """Named parameters that share an optimiser, a base rate and a weight decay."""

    name: str
    parameters: Mapping[str, nn.Parameter]
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW; the released AHA-WAM training uses the same
    momentum: float = 0.95  # Muon


def split_muon(
    named: Iterable[tuple[str, nn.Parameter]], takes_muon: Iterable[str], *, muon_lr: float, adamw_lr: float, weight_decay: float
) -> list[ParameterGroup]:
    """Two groups: Muon for the 2-D weights whose name is in `takes_muon`, AdamW for everything else that is trained."""
    chosen = set(takes_muon)
    trained = {name: p for name, p in named if p.requires_grad}
    muon = {name: p for name, p in trained.items() if name in chosen and p.ndim == 2}
    adamw = {name: p for name, p in trained.items() if name not in muon}
    groups = [ParameterGroup("adamw", adamw, "adamw", adamw_lr, weight_decay)]
    if muon:
        groups.append(ParameterGroup("muon", muon, "muon", muon_lr, weight_decay))
    return groups


def build_optimizers(groups: list[ParameterGroup]) -> dict[str, torch.optim.Optimizer]:
    """One optimiser per group, by group name.  ValueError when Muon is given a tensor that is not a matrix."""
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for group in groups:
        parameters = list(group.parameters.values())
        if group.optimizer == "muon":
            if wrong := [name for name, p in group.parameters.items() if p.ndim != 2]:
                raise ValueError(f"Muon needs 2-D weights; move {', '.join(wrong)} to an AdamW group.")
            optimizers[group.name] = Muon(parameters, lr=group.lr, momentum=group.momentum, weight_decay=group.weight_decay)
        else:
            optimizers[group.name] = AdamW(
                parameters, lr=group.lr, betas=group.betas, weight_decay=group.weight_decay, foreach=True
            )
    return optimizers


def state_bytes(group: ParameterGroup) -> int:
    """Bytes of the optimiser's own tensors after a step: AdamW has two moments and a counter per tensor, Muon one moment."""
    values = sum(p.numel() * p.element_size() for p in group.parameters.values())
    return values if group.optimizer == "muon" else 2 * values + 4 * len(group.parameters)


def rate_factor(step: int, fraction: float, warmup_steps: int, final: float) -> float:
    """Multiplier of the base rates at `step` (from 0) when `fraction` in [0, 1] of the run is done."""
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    cosine = final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(max(fraction, 0.0), 1.0)))
    return warmup * cosine


class AdamW(torch.optim.AdamW):
    """PyTorch's AdamW; each rank updates its rows as plain tensors, without what dispatching a thousand DTensors costs."""

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        has_complex = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = [local(tensor) for tensor in tensors]
        return bool(has_complex)


class Muon(torch.optim.Muon):
    """PyTorch's Muon, also for matrices whose rows are spread over ranks.

    Orthogonalising needs the whole matrix, in the same bfloat16 products as on one rank: each rank keeps the momentum of its
    rows, gathers it, computes the step of the whole matrix and takes its own rows.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        if not any(isinstance(p, DTensor) for group in self.param_groups for p in group["params"]):
            super().step(closure)
            return
        for group in self.param_groups:
            gradients: list[Tensor] = []
            momenta: list[Tensor] = []
            matrices: list[Tensor] = []
            self._init_group(group, matrices, gradients, momenta)
            for matrix, gradient, momentum in zip(matrices, map(local, gradients), map(local, momenta), strict=True):
                momentum.lerp_(gradient, 1 - group["momentum"])
                update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
                step = _orthogonal_step(whole(sharded(update, matrix)), group)
                local(matrix).mul_(1 - group["lr"] * group["weight_decay"]).add_(local(rows_of(step, matrix)))


def _orthogonal_step(update: Tensor, group: Mapping[str, Any]) -> Tensor:
    """What Muon adds to a matrix for this update: its own step on zeros, without momentum and decay."""
    zeros = nn.Parameter(torch.zeros_like(update))
    zeros.grad = update
    names = ("lr", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")
    plain = {name: group[name] for name in names}
    torch.optim.Muon([zeros], weight_decay=0.0, momentum=0.0, nesterov=False, **plain).step()
    return zeros.detach()


class WeightAverage:
    """Exponential average of a module's state with a decay that grows: min(decay, (1 + i) / (10 + i)) at update i."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards `module` after optimiser step `step` (from 0).  Tensors that are not floats are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                averages.append(local(self.state[name]))
                values.append(local(tensor))
            else:
                self.state[name].copy_(tensor)
        torch._foreach_lerp_(averages, values, 1.0 - decay)

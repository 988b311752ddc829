"""Which calls of a recipe will run in PyTorch on a target, and why: what a bundle's record tells `edgewam inspect`."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from edgewam.core.tensor_spec import TensorSpec
from edgewam.kernels.bound import WRONG_HERE, kernel_of
from edgewam.kernels.call import PROGRAM, Recipe
from edgewam.kernels.choices import Choices, key_of
from edgewam.kernels.target import Target

_TORCH_NAMES = {"float8_e4m3": torch.float8_e4m3fn}


def without_kernel(
    recipe: Recipe, specs: Mapping[str, TensorSpec], target: Target, choices: Choices
) -> list[tuple[int, str, str]]:
    """Index, op and reason of every call that its reference will compute; pieces that stay programs are not among them."""
    tensors = recipe.resolve({name: _empty(spec) for name, spec in specs.items()})
    found = []
    for index, call in enumerate(recipe.calls):
        if call.op == PROGRAM:
            continue
        operands, kernel = {role: tensors[name] for role, name in call.operands.items()}, kernel_of(call.op)
        why = kernel.support(call, operands, target) if kernel else "there is no kernel of this op"
        if kernel and not why and choices.pick(key_of(call, operands), kernel.variants(call, operands, target)) is None:
            why = WRONG_HERE
        if why:
            found.append((index, call.op, why))
    return found


def _empty(spec: TensorSpec) -> torch.Tensor:
    return torch.empty(spec.shape, dtype=_TORCH_NAMES.get(spec.dtype) or getattr(torch, spec.dtype), device="meta")

"""The calls of a recipe bound once to fixed memory: kernels where they take the call, else PyTorch, and why.

What a file of `kernels/ops` offers: `support(call, tensors, target)` gives "" or one sentence why not; `variants(...)` the
candidates that fit the target, the default first; `launches(call, tensors, variant, target)` its kernels in their order, which
`launch.bind()` makes a function that neither allocates nor waits, and `launch.program()` names for compilation ahead of time.
`tensors` is role -> tensor.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from edgewam.core import plugins
from edgewam.core.errors import ContractError
from edgewam.core.tensor_spec import TensorSpec
from edgewam.kernels.call import PROGRAM, Call, Recipe
from edgewam.kernels.choices import Choices, key_of
from edgewam.kernels.reference import REFERENCES
from edgewam.kernels.target import Target
from edgewam.kernels.variant import Variant

Run = Callable[[], None]
Reference = Callable[..., Mapping[str, Tensor]]
WRONG_HERE = "no variant of its kernel gave the reference's result when it was tuned on this card"


@dataclass(frozen=True)
class BoundCall:
    """One call.  variant: of its kernel; None for the reference and for a program.  why: the reference runs; "" of kernels."""

    op: str
    run: Run
    variant: Variant | None = None
    why: str = ""


@dataclass(frozen=True)
class Bound:
    """All calls in their order.  unsupported: index, op and reason of each that runs as its reference."""

    calls: tuple[BoundCall, ...]
    unsupported: tuple[tuple[int, str, str], ...]

    def __call__(self) -> None:
        """Run the stage once."""
        for call in self.calls:
            call.run()


def bind_recipe(
    recipe: Recipe,
    tensors: Mapping[str, Tensor],
    target: Target,
    choices: Choices,
    programs: Mapping[str, Callable[..., Sequence[Tensor]]] | None = None,
) -> Bound:
    """Bind every call of a recipe.

    Args:
        recipe: the stage.
        tensors: its inputs, outputs, weights and workspaces by name.
        target: what the tensors lie on.
        choices: variants of the kernels.
        programs: by file, the pieces that stay exported programs: tensors in0, in1, ... -> tensors for out0, out1, ...

    Raises:
        ArtifactError: choices of another card.
        ContractError: a tensor, a program or a role that does not exist.
    """
    named = recipe.resolve(tensors)
    choices = choices.for_target(target)
    calls = []
    for call in recipe.calls:
        operands = {role: named[name] for role, name in call.operands.items()}
        if call.op == PROGRAM:
            calls.append(BoundCall(PROGRAM, _program(call, operands, programs or {})))
        else:
            calls.append(bind_call(call, operands, target, choices))
    return Bound(tuple(calls), tuple((index, call.op, call.why) for index, call in enumerate(calls) if call.why))


def bind_call(call: Call, operands: Mapping[str, Tensor], target: Target, choices: Choices) -> BoundCall:
    """Bind one call: its kernel where it takes the call, else its reference."""
    variant, why = choose(call, operands, target, choices)
    kernel = kernel_of(call.op)
    if kernel is None or variant is None:
        return BoundCall(call.op, _reference(call, operands), why=why)
    return BoundCall(call.op, bind_kernel(kernel, call, operands, variant, target), variant)


def choose(call: Call, operands: Mapping[str, Tensor], target: Target, choices: Choices) -> tuple[Variant | None, str]:
    """The variant that a call runs with and "", or None and why its reference runs; operands may be on the meta device."""
    kernel = kernel_of(call.op)
    if kernel is None:
        return None, "there is no kernel of this op"
    if why := kernel.support(call, operands, target):
        return None, why
    variant = choices.pick(key_of(call, operands), kernel.variants(call, operands, target))
    return variant, WRONG_HERE if variant is None else ""


def without_kernel(
    recipe: Recipe, specs: Mapping[str, TensorSpec], target: Target, choices: Choices
) -> list[tuple[int, str, str]]:
    """What `Bound.unsupported` will be for tensors of these specs (see `on_meta`)."""
    named, found = on_meta(recipe, specs), []
    for index, call in enumerate(recipe.calls):
        if call.op != PROGRAM:
            _, why = choose(call, {role: named[name] for role, name in call.operands.items()}, target, choices)
            found += [(index, call.op, why)] if why else []
    return found


def on_meta(recipe: Recipe, specs: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    """Every tensor and view that a recipe names, without memory.  specs: of inputs, outputs and weights by name."""
    tensors = {
        name: torch.empty(spec.shape, dtype=getattr(torch, spec.torch_dtype), device="meta")
        for name, spec in {**specs, **recipe.workspaces}.items()
    }
    return recipe.resolve(tensors)


def bind_kernel(kernel: ModuleType, call: Call, operands: Mapping[str, Tensor], variant: Variant, target: Target) -> Run:
    """One function for all launches of a call."""
    first, *others = (launch.bind() for launch in kernel.launches(call, operands, variant, target))
    if not others:
        return first

    def run() -> None:
        first()
        for other in others:
            other()

    return run


@functools.cache
def kernel_of(op: str) -> ModuleType | None:
    """The module of an op's kernel, a dotted name for one of another package; None where there is only a reference."""
    return plugins.load("kernel", op) if "." in op or op in plugins.names("kernel") else None


def reference_of(op: str) -> Reference:
    """The function that defines an op; an op of another package brings its own `reference`.

    Raises:
        ContractError: an unknown op.
    """
    found: Reference | None = REFERENCES.get(op) or getattr(kernel_of(op), "reference", None)
    if found is None:
        raise ContractError(f"There is no op '{op}'. Available: {', '.join(REFERENCES)}. Compile the bundle again.")
    return found


def split(call: Call, operands: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a call reads and what it writes, by role: an operand is written when it is no parameter of the op's reference."""
    parameters = inspect.signature(reference_of(call.op)).parameters
    reads = {role: tensor for role, tensor in operands.items() if role in parameters}
    return reads, {role: tensor for role, tensor in operands.items() if role not in parameters}


def _reference(call: Call, operands: Mapping[str, Tensor]) -> Run:
    function = reference_of(call.op)
    reads, writes = split(call, operands)

    def run() -> None:
        found = function(**reads, **call.attributes)
        _write(call, writes, found)

    return run


def _program(call: Call, operands: Mapping[str, Tensor], programs: Mapping[str, Callable[..., Sequence[Tensor]]]) -> Run:
    file = str(call.attributes.get("file"))
    if file not in programs:
        raise ContractError(
            f"The piece '{file}' of this stage is not there. It has: {', '.join(programs) or 'none'}. Compile again."
        )
    function = programs[file]
    reads = [operands[f"in{i}"] for i in range(sum(role.startswith("in") for role in operands))]
    writes = {role: tensor for role, tensor in operands.items() if role.startswith("out")}

    def run() -> None:
        _write(call, writes, {f"out{i}": tensor for i, tensor in enumerate(function(*reads))})

    return run


def _write(call: Call, writes: Mapping[str, Tensor], found: Mapping[str, Any]) -> None:
    """Results into the operands: whoever reads them is bound to that memory; `copy_` also rounds to their dtype."""
    for role, tensor in writes.items():
        if role not in found:
            raise ContractError(
                f"A call of {call.op} writes '{role}', and the op gives {', '.join(found)}. Compile the bundle again."
            )
        tensor.copy_(found[role])

"""Engines beside the backend's own: one that remembers what a stage was given, and one that runs a recipe in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.kernel_recipes import Lowered, by_reference, empty, operands
from edgewam.core.stage import Stage
from edgewam.kernels.bound import bind_recipe
from edgewam.kernels.call import PROGRAM, Call, Recipe
from edgewam.kernels.choices import Choices
from edgewam.kernels.target import INTERPRETER
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.memory import BoundCall, Buffer


class KeptEngine:
    """The stage as it is.  While `is_recording`, `seen` gets a copy of the inputs of every call: real data."""

    def __init__(self, stage: Stage) -> None:
        self._engine = TorchEngine(stage)
        self.seen: list[dict[str, Tensor]] = []
        self.is_recording = False

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> BoundCall:
        """See `Engine.bind`."""
        call = self._engine.bind(inputs, outputs)

        def run() -> None:
            if self.is_recording:
                self.seen.append({name: buffer.clone() for name, buffer in inputs.items()})
            call()

        return run


class ReferenceEngine:
    """A recipe whose every op is computed by its reference: the arithmetic that the kernels are to reproduce."""

    def __init__(self, lowered: Lowered, device: str) -> None:
        self._lowered, self._device = lowered, device

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> BoundCall:
        """See `Engine.bind`."""
        made = {spec.name: empty(spec, self._device) for spec in self._lowered.recipe.workspaces.values()}
        tensors = {**made, **self._lowered.weights, **inputs, **outputs}
        calls = plain_calls(self._lowered, self._lowered.recipe.resolve(tensors))

        def run() -> None:
            with torch.inference_mode():
                for call in calls:
                    call()

        return run


def plain_calls(lowered: Lowered, tensors: Mapping[str, Tensor]) -> list[Callable[[], Any]]:
    """Every call of a recipe in plain PyTorch, over resolved tensors."""
    return [plain_call(lowered, call, tensors) for call in lowered.recipe.calls]


def plain_call(lowered: Lowered, call: Call, tensors: Mapping[str, Tensor]) -> Callable[[], Any]:
    """One call in plain PyTorch; a piece that is no op by its program."""
    if call.op != PROGRAM:
        return by_reference(call, operands(call, tensors))
    return bind_recipe(Recipe({}, {}, (call,)), tensors, INTERPRETER, Choices.defaults(INTERPRETER), lowered.programs)

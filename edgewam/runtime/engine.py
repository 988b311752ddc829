"""What a backend gives the pipeline: an engine that is bound once to fixed memory and then called without arguments.

Binding to memory instead of passing arrays is what ONNX Runtime runs fastest (IOBinding) and what a captured CUDA graph
needs, so that one pipeline serves both.  A run half offers `memory(options)`, the memory its engines are bound to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from edgewam.core.errors import ContractError
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime.memory import Array, BoundCall, Buffer, HostMemory, Memory


@dataclass(frozen=True)
class Support:
    """Whether a backend can work here or on a stage, and if not, why and what to do."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class EngineOptions:
    """How engines run.

    threads: CPU threads inside one stage.  spinning: workers busy-wait between parallel sections.  device: "cpu", "cuda" or
    "cuda:<n>", for backends that can do either.
    """

    threads: int = 2
    spinning: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ContractError(f"threads must be at least 1, got {self.threads}.")


class Engine(Protocol):
    """One compiled stage."""

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> BoundCall:
        """Fix the memory of every input and of the wanted outputs (C-contiguous, never overlapping); return the call.

        The call reads what the inputs hold at that moment and overwrites the outputs, in the order of the memory's current
        stream.  Buffers must outlive it.
        """


def allocate(spec: TensorSpec) -> Array:
    """Zeros of a spec in host memory.

    Raises:
        ContractError: bfloat16 or float8, which NumPy does not have.
    """
    return HostMemory().allocate(spec)


def check_binding(stage: Stage, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
    """Raise ContractError unless the buffers are what `Engine.bind` of this stage may be given."""
    if set(inputs) != {spec.name for spec in stage.inputs}:
        raise ContractError(
            f"Stage '{stage.name}' needs exactly the inputs {[s.name for s in stage.inputs]}, got {sorted(inputs)}."
        )
    for name, array in inputs.items():
        stage.input(name).check(array)
    for name, array in outputs.items():
        stage.output(name).check(array)
    for name, array in [*inputs.items(), *outputs.items()]:
        if not (array.flags.c_contiguous if hasattr(array, "flags") else array.is_contiguous()):
            raise ContractError(f"Stage '{stage.name}': '{name}' must be C-contiguous to be bound.")


def run_engine(stage: Stage, engine: Engine, inputs: Mapping[str, Array], memory: Memory | None = None) -> dict[str, Array]:
    """One call with fresh buffers, host arrays in and out: for checks and tests, not for the loop.

    memory: where the engine's buffers live; without it the given arrays themselves are bound.
    """
    place = memory or HostMemory()
    given: dict[str, Buffer] = dict(inputs)
    if memory is not None:
        for name, array in inputs.items():
            given[name] = memory.allocate(stage.input(name))
            memory.write(given[name], array)
    outputs = {spec.name: place.allocate(spec) for spec in stage.outputs}
    place.synchronize()  # zeroing the outputs must not come after the engine on its own stream
    with place.on(place.stream()):
        engine.bind(given, outputs)()
    place.synchronize()
    return {name: place.read(buffer) for name, buffer in outputs.items()}

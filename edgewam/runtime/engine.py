"""What a backend gives the pipeline: an engine that is bound once to fixed memory and then called without arguments.

Binding to memory instead of passing arrays is what ONNX Runtime runs fastest (IOBinding) and what a captured CUDA graph
needs, so that one pipeline serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import ContractError
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec

Array = npt.NDArray[Any]
BoundCall = Callable[[], None]


@dataclass(frozen=True)
class Support:
    """Whether a backend can work here or on a stage, and if not, why and what to do."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class EngineOptions:
    """How engines run.  threads: CPU threads inside one stage; spinning: workers busy-wait between parallel sections."""

    threads: int = 2
    spinning: bool = True

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ContractError(f"threads must be at least 1, got {self.threads}.")


class Engine(Protocol):
    """One compiled stage."""

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> BoundCall:
        """Fix the memory of every input and of the wanted outputs (C-contiguous, never overlapping); return the call.

        The call reads what the inputs hold at that moment and overwrites the outputs.  Arrays must outlive it.
        """


def allocate(spec: TensorSpec) -> Array:
    """Zeros of a spec in host memory.

    Raises:
        ContractError: bfloat16 or float8, which NumPy does not have.
    """
    # by name: another package may have taught NumPy a bfloat16 that no engine here can bind
    if spec.dtype in ("bfloat16", "float8_e4m3"):
        raise ContractError(f"Host buffers cannot hold '{spec.name}' of dtype {spec.dtype}. Use float32 at the boundary.")
    return np.zeros(spec.shape, np.dtype(spec.dtype))


def check_binding(stage: Stage, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Raise ContractError unless the arrays are what `Engine.bind` of this stage may be given."""
    if set(inputs) != {spec.name for spec in stage.inputs}:
        raise ContractError(
            f"Stage '{stage.name}' needs exactly the inputs {[s.name for s in stage.inputs]}, got {sorted(inputs)}."
        )
    for name, array in inputs.items():
        stage.input(name).check(array)
    for name, array in outputs.items():
        stage.output(name).check(array)
    for name, array in [*inputs.items(), *outputs.items()]:
        if not array.flags.c_contiguous:
            raise ContractError(f"Stage '{stage.name}': '{name}' must be C-contiguous to be bound.")


def run_engine(stage: Stage, engine: Engine, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """One call with fresh outputs: for checks and tests, not for the loop."""
    outputs = {spec.name: allocate(spec) for spec in stage.outputs}
    engine.bind(inputs, outputs)()
    return outputs

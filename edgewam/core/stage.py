"""A stage: a pure tensor function with named inputs and outputs, static shapes and a known cost (DESIGN section 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edgewam.core.errors import ContractError
from edgewam.core.tensor_spec import TensorSpec


@dataclass(frozen=True)
class Cost:
    """What one call must move and compute: enough for a roofline without torch or the device.

    `weight_bytes` at the stage's own precision, `flops` = 2 per multiply-add, `rows` of its main matrix products,
    `io_bytes` = inputs + outputs.
    """

    weight_bytes: int
    flops: int
    rows: int
    io_bytes: int


@dataclass(frozen=True)
class Stage:
    """One compiled unit.  `function(*inputs) -> tuple(outputs)` in declared order; None when read back from a manifest."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cost: Cost
    function: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for kind, specs in (("input", self.inputs), ("output", self.outputs)):
            names = [spec.name for spec in specs]
            if len(set(names)) != len(names):
                raise ContractError(f"Stage '{self.name}' names an {kind} twice: {names}.")

    def input(self, name: str) -> TensorSpec:
        """Spec of one input; ContractError lists the valid names."""
        return _by_name(self.inputs, name, f"Stage '{self.name}' input")

    def output(self, name: str) -> TensorSpec:
        """Spec of one output; ContractError lists the valid names."""
        return _by_name(self.outputs, name, f"Stage '{self.name}' output")

    def without_function(self) -> Stage:
        """The same declaration without its code, as a manifest holds it."""
        return replace(self, function=None)

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form without the function; `from_json` is its inverse."""
        return {
            "name": self.name,
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "cost": asdict(self.cost),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Stage:
        """Inverse of `to_json`."""
        return Stage(
            data["name"],
            tuple(map(TensorSpec.from_json, data["inputs"])),
            tuple(map(TensorSpec.from_json, data["outputs"])),
            Cost(**data["cost"]),
        )


def has_half_types(stages: Mapping[str, Stage]) -> bool:
    """Whether stages hand 16-bit floats to each other, as policies with bf16 or fp16 weights do with keys and values."""
    return any(spec.dtype in ("bfloat16", "float16") for s in stages.values() for spec in (*s.inputs, *s.outputs))


def _by_name(specs: tuple[TensorSpec, ...], name: str, what: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise ContractError(f"{what} '{name}' does not exist. Available: {', '.join(s.name for s in specs)}.")

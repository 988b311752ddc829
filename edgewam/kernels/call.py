"""A stage as a list of kernel calls over named tensors: plain data, written by `compile`, run by `runtime`.

A call names an op (`kernels/ops/<op>.py`, or a function of `kernels/reference.py` where there is no kernel), the tensor of each
of its roles, and its attributes.  Tensors are the stage's inputs and outputs, weights, workspaces, and views of any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgewam.core.errors import ContractError
from edgewam.core.tensor_spec import TensorSpec

Attribute = bool | int | float | str
PROGRAM = "program"  # op of a piece that stays an exported program of PyTorch; attribute `file`, roles in0, in1, ..., out0, ...


@dataclass(frozen=True)
class View:
    """A part of another tensor that shares its memory.

    at: one entry per leading axis: an index, which drops the axis, (start, stop), or None for all of it; the axes behind stay.
    shape: what the part is seen as, if not as it is.
    """

    of: str
    at: tuple[int | tuple[int, int] | None, ...] = ()
    shape: tuple[int, ...] | None = None

    def __call__(self, tensor: Any) -> Any:
        """The part of a torch tensor."""
        index = tuple(entry if isinstance(entry, int) else slice(None) if entry is None else slice(*entry) for entry in self.at)
        part = tensor[index] if index else tensor
        return part if self.shape is None else part.view(self.shape)

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form; `from_json` is its inverse."""
        return {"of": self.of, "at": [list(e) if isinstance(e, tuple) else e for e in self.at], "shape": self.shape}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> View:
        """Inverse of `to_json`."""
        at = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in data["at"])
        return View(data["of"], at, None if data["shape"] is None else tuple(data["shape"]))


@dataclass(frozen=True)
class Call:
    """One kernel: op, role -> tensor name, and what is fixed."""

    op: str
    operands: Mapping[str, str]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form; `from_json` is its inverse."""
        return {"op": self.op, "operands": dict(self.operands), "attributes": dict(self.attributes)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Call:
        """Inverse of `to_json`."""
        return Call(data["op"], dict(data["operands"]), dict(data["attributes"]))


@dataclass(frozen=True)
class Recipe:
    """The calls of one stage in their order.  workspaces: tensors that only calls read and write; weights live in a file."""

    workspaces: Mapping[str, TensorSpec]
    views: Mapping[str, View]
    calls: tuple[Call, ...]

    def resolve(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """`tensors` (inputs, outputs, weights, workspaces by name) and every view of them.

        Raises:
            ContractError: a view or a call of a tensor that is nowhere.
        """
        found = dict(tensors)
        for name, view in self.views.items():
            if view.of not in found:
                raise ContractError(f"The view '{name}' is of '{view.of}', which is nowhere. Compile the bundle again.")
            found[name] = view(found[view.of])
        for call in self.calls:
            for role, name in call.operands.items():
                if name not in found:
                    raise ContractError(f"'{role}' of a {call.op} is '{name}', which is nowhere. Compile the bundle again.")
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form; `from_json` is its inverse."""
        return {
            "workspaces": [spec.to_json() for spec in self.workspaces.values()],
            "views": {name: view.to_json() for name, view in self.views.items()},
            "calls": [call.to_json() for call in self.calls],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Recipe:
        """Inverse of `to_json`."""
        specs = [TensorSpec.from_json(spec) for spec in data["workspaces"]]
        views = {name: View.from_json(view) for name, view in data["views"].items()}
        return Recipe({spec.name: spec for spec in specs}, views, tuple(map(Call.from_json, data["calls"])))

"""The recipe of one stage in the making: it names tensors, and turns linear layers, plain or quantised, into calls.

It holds references to a model's weights and computes nothing with them but casts, so a stage on the meta device costs no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgewam.core.errors import EdgewamError
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.kernels.call import PROGRAM, Attribute, Call, Recipe, View
from edgewam.kernels.reference import EPS, SQUARE_COLUMNS
from edgewam.kernels.weights import check_finite, nibbles
from edgewam.models.stage_cost import make_stage
from edgewam.quantize.arithmetic import QuantizedLinear
from edgewam.quantize.steps import SCALE_ROW

_HALF = ("float16", "bfloat16")
_EIGHT_BITS = {torch.int8: "int8", torch.float8_e4m3fn: "fp8"}


class NotLowered(EdgewamError):
    """A stage is not made of what the fused kernels compute; the message says what there is instead."""


@dataclass(frozen=True)
class Piece:
    """A part of a stage that no op computes, as a stage of its own, and why."""

    stage: Stage
    why: str


@dataclass(frozen=True)
class Lowered:
    """A stage as calls.  weights: by name, in the order in which they are read.  pieces: by the name of their file."""

    recipe: Recipe
    weights: Mapping[str, Tensor]
    pieces: Mapping[str, Piece]

    @property
    def programs(self) -> dict[str, Callable[..., object]]:
        """The pieces as functions, by the name of their file: what `bind_recipe` takes."""
        return {file: piece.stage.function for file, piece in self.pieces.items() if piece.stage.function is not None}

    def specs(self, stage: Stage) -> dict[str, TensorSpec]:
        """The spec of every tensor that is there before a call: inputs, outputs, weights."""
        weights = {name: TensorSpec.of(name, tensor) for name, tensor in self.weights.items()}
        return {spec.name: spec for spec in (*stage.inputs, *stage.outputs)} | weights


@dataclass(frozen=True)
class Layer:
    """A linear layer's operands by role, what its input is rounded to ("none" for nothing), and how wide its output is."""

    operands: Mapping[str, str]
    activations: str
    outs: int


class Builder:
    """dtype: of the stage's weights, keys and values; `wide`: of its residual stream, tables, biases and sums."""

    def __init__(self, stage: Stage, dtype: str) -> None:
        self.stage, self.dtype = stage, dtype
        self.wide = "float64" if dtype == "float64" else "float32"
        self.inputs = [spec.name for spec in stage.inputs]
        self.outputs = [spec.name for spec in stage.outputs]
        self._weights: dict[str, Tensor] = {}
        self._workspaces: dict[str, TensorSpec] = {}
        self._views: dict[str, View] = {}
        self._pieces: dict[str, Piece] = {}
        self._calls: list[Call] = []

    def finished(self) -> Lowered:
        """What was built."""
        return Lowered(Recipe(self._workspaces, self._views, tuple(self._calls)), self._weights, self._pieces)

    @property
    def rounding(self) -> str:
        """What the inputs of products are rounded to where no layer says otherwise."""
        return self.dtype if self.dtype in _HALF else "none"

    def weight(self, name: str, tensor: Tensor, wide: bool = False) -> str:
        """A constant of the stage; `wide` ones are cast to the wide type.

        Raises:
            EdgewamError: values that are not finite.
        """
        tensor = tensor.detach()
        if tensor.is_floating_point() and tensor.element_size() > 1:
            check_finite(tensor, f"{self.stage.name}.{name}")
        if wide:
            tensor = tensor.to(getattr(torch, self.wide))
        assert name not in self._weights, f"two weights are called '{name}'"
        self._weights[name] = tensor.contiguous()
        return name

    def workspace(self, name: str, shape: tuple[int, ...], dtype: str | None = None) -> str:
        """A tensor that only calls read and write, of the stage's dtype by default; the same one for the same name."""
        assert name not in (*self.inputs, *self.outputs), f"'{name}' is no workspace"
        spec = TensorSpec(name, shape, dtype or self.dtype)
        assert self._workspaces.setdefault(name, spec) == spec, f"two workspaces are called '{name}'"
        return name

    def view(self, of: str, *at: int | tuple[int, int] | None, shape: tuple[int, ...] | None = None) -> str:
        """A part of a tensor, or the tensor in another shape."""
        entries = (":" if entry is None else f"{entry[0]}:{entry[1]}" if isinstance(entry, tuple) else str(entry) for entry in at)
        name = of + (f"[{', '.join(entries)}]" if at else "") + (f" as {'x'.join(map(str, shape))}" if shape else "")
        self._views[name] = View(of, at, shape)
        return name

    def call(self, op: str, attributes: Mapping[str, Attribute], **operands: str | None) -> None:
        """Append a call; operands that are None are absent."""
        self._calls.append(Call(op, {role: name for role, name in operands.items() if name is not None}, attributes))

    def piece(self, name: str, module: nn.Module, inputs: tuple[TensorSpec, ...], output: TensorSpec, rows: int, why: str) -> str:
        """A call of a module that stays an exported program; returns the workspace that it writes."""
        stage = make_stage(f"{self.stage.name}.{name}", module, inputs, (output,), rows)
        file = f"{stage.name}.pt2"
        self._pieces[file] = Piece(stage, why)
        operands = {f"in{i}": spec.name for i, spec in enumerate(inputs)}
        self.workspace(output.name, output.shape, output.dtype)
        self.call(PROGRAM, {"file": file}, **operands, out0=output.name)
        return output.name

    def spec(self, workspace: str) -> TensorSpec:
        """The spec of a workspace."""
        return self._workspaces[workspace]

    def layer(self, path: str, layer: nn.Module, batch: int = 0) -> Layer:
        """The operands of the linear layer at `path`; as `batch` layers with one input, whose outputs lie behind each other.

        Raises:
            NotLowered: a layer of another kind, or one whose activations are measured at run time.
        """
        operands, rounding = {}, self.rounding
        if isinstance(layer, QuantizedLinear):
            operands["weight"] = self.weight(f"{path}.codes", _codes(layer))
            operands["weight_scale"] = self.weight(f"{path}.weight_scale", layer.weight_scale, wide=True)
            if layer.smooth is not None:
                operands["smooth"] = self.weight(f"{path}.smooth", layer.smooth, wide=True)
            if layer.kind.rounds_inputs:
                rounding, operands["input_scale"] = _EIGHT_BITS[layer.kind.dtype], self._input_scale(path, layer)
        elif type(layer) is nn.Linear:
            operands["weight"] = self.weight(f"{path}.weight", layer.weight)
        else:
            raise NotLowered(f"its layer '{path}' is a {type(layer).__name__} and no linear layer")
        if layer.bias is not None:
            operands["bias"] = self.weight(f"{path}.bias", layer.bias, wide=True)
        outs = layer.out_features
        if batch:
            outs //= batch
            for role in ("weight", "weight_scale", "bias"):
                if role in operands:
                    inner = self._weights[operands[role]].shape[1:]
                    operands[role] = self.view(operands[role], shape=(batch, outs, *inner))
        return Layer(operands, rounding, outs)

    def linear(
        self, layer: Layer, x: str, y: str, *, norm: float | None = None, activation: str = "none", pairs: bool = False,
        **operands: str | None,
    ) -> None:  # fmt: skip
        """Append `reference.linear`; norm: the eps of a norm in front.  Its further operands by role."""
        attributes: dict[str, Attribute] = {}
        if norm is not None:
            attributes["norm"] = True
            if norm != EPS:
                attributes["eps"] = norm
        for name, value in (("activation", activation), ("activations", layer.activations)):
            if value != "none":
                attributes[name] = value
        if pairs:
            attributes["pairs"] = True
        self.call("linear", attributes, x=x, **layer.operands, **operands, y=y)

    def squares(self, name: str, shape: tuple[int, ...]) -> str:
        """A workspace for the sums of squares of a projection of `shape`."""
        return self.workspace(name, (*shape[:-1], shape[-1] // SQUARE_COLUMNS), self.wide)

    def require_width(self, width: int) -> None:
        """Raise NotLowered unless sums of squares divide an attention's width."""
        if width % SQUARE_COLUMNS:
            raise NotLowered(f"its attention is {width} wide, and the kernels sum squares over {SQUARE_COLUMNS} columns each")

    def _input_scale(self, path: str, layer: QuantizedLinear) -> str:
        if layer.is_stepped:
            return self.view(SCALE_ROW, (layer.row_index, layer.row_index + 1))
        if layer.input_scale is None:
            raise NotLowered(f"its layer '{path}' is {layer.kind.name}, whose activations are measured in every call")
        return self.weight(f"{path}.input_scale", layer.input_scale.reshape(1), wide=True)


def _codes(layer: QuantizedLinear) -> Tensor:
    """Codes as kernels read them: of 4 bits two a byte."""
    codes = layer.codes
    return nibbles(codes) if layer.kind.bits < 8 else codes

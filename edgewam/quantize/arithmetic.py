"""What a quantised layer computes: the reference that integer and FP8 engines are compared with, in plain torch.

A layer keeps its weight as float32 numbers that lie on the grid of its format, and rounds what comes in; `codes` gives the bytes
that are stored and that engines multiply.  In a stage of bf16 or fp16 it is an island of float32: its input comes in the stage's
dtype (`base`), rounding, product and bias are float32, and the result is rounded once, to `base`.  An engine agrees up to the
order of its sums: codes are exact in every dtype, and it adds their products in float32 or int32.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewam.core.errors import ContractError
from edgewam.quantize.formats import Format, encode, rounded, rounded_dynamically


class ScaleRow:
    """Where a stage puts its input `scale_row` for its layers to read.

    A plain object: while a module is exported no attribute of a module may change.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __getitem__(self, index: int) -> Tensor:
        """Scale [] of one layer."""
        if self.value is None:
            raise ContractError("A layer has one scale per step, but its stage has no 'scale_row'. Use `with_scale_rows`.")
        return self.value[index]


class _Quantized:
    """What both kinds share; `codes` and `weight_scale` together are the weight.

    step_scales [steps]: of a layer with one activation scale per step; it divides by the current one, `row[row_index]`, rounds
    with an `input_scale` of 1, which engines can keep as a constant, and multiplies its product.
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor | None
    output_scale: Tensor | None
    smooth: Tensor | None
    step_scales: Tensor | None
    kind: Format
    base: torch.dtype
    is_stepped: bool
    row: ScaleRow
    row_index: int

    def reading(self, row: ScaleRow, index: int) -> Any:
        """The same layer, sharing its tensors, with its scale at `row[index]`."""
        made = copy.copy(self)
        made.row, made.row_index = row, index
        return made

    @property
    def stored_scales(self) -> dict[str, Tensor]:
        """What `Scales` holds of this layer, by name."""
        scales = {"input_scale": self.step_scales if self.is_stepped else self.input_scale}
        scales |= {"output_scale": self.output_scale, "smooth": self.smooth}
        return {name: scale for name, scale in scales.items() if scale is not None}

    @property
    def codes(self) -> Tensor:
        """The weight in `kind.dtype`, of its own shape."""
        return encode(self.weight, per_channel(self.weight_scale, self.weight), self.kind)

    @property
    def packed_bytes(self) -> int:
        """Bytes of codes and scales as they are stored."""
        codes = self.weight.numel() * self.kind.bits // 8
        return codes + sum(4 * s.numel() for s in (self.weight_scale, *self.stored_scales.values()))

    def round_input(self, x: Tensor) -> Tensor:
        """What the layer's product sees of its input."""
        if self.smooth is not None:
            x = x * self.smooth
        if not self.kind.rounds_inputs:
            return x
        return rounded_dynamically(x) if self.input_scale is None else rounded(x, self.input_scale, self.kind)


class QuantizedLinear(_Quantized, nn.Linear):
    """[..., in] -> [..., out]."""

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        x = input.to(self.base).float()
        bias = None if self.bias is None else self.bias.float()
        if not self.is_stepped:
            return F.linear(self.round_input(x), self.weight, bias).to(self.base)
        scale = self.row[self.row_index]
        out = F.linear(self.round_input(x / scale), self.weight) * scale
        return (out if bias is None else out + bias).to(self.base)


class QuantizedConv2d(_Quantized, nn.Conv2d):
    """[B, in, H, W] -> [B, out, H', W']; the result is rounded too, since integer convolutions give integers."""

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        bias = None if self.bias is None else self.bias.float()
        out = self._conv_forward(self.round_input(input.to(self.base).float()), self.weight, bias)
        return self.round_output(out).to(self.base)

    def round_output(self, out: Tensor) -> Tensor:
        """The result as integers give it."""
        assert self.output_scale is not None
        return rounded(out, self.output_scale, self.kind)


class FloatLinear(QuantizedLinear):
    """The same arithmetic without rounding the input: exporters get it, and the backend puts its own rounding in."""

    def round_input(self, x: Tensor) -> Tensor:
        """Nothing."""
        return x


class FloatConv2d(QuantizedConv2d):
    """The same without rounding input and output."""

    def round_input(self, x: Tensor) -> Tensor:
        """Nothing."""
        return x

    def round_output(self, out: Tensor) -> Tensor:
        """Nothing."""
        return out


def per_channel(scale: Tensor, weight: Tensor) -> Tensor:
    """A scale [out], or [out, groups] of a linear layer, that broadcasts over a weight [out, ...]."""
    if scale.dim() == 2:
        return scale.repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)
    return scale.reshape(-1, *[1] * (weight.dim() - 1))

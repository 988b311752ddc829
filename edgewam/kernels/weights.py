"""Weights as kernels read them: cast to a float dtype, or codes with their scales; exactly what `reference.dequantized` undoes.

Packing happens once, when a stage is built, and that is where a weight that is not finite is found.  A tensor on the meta device
gives codes and scales without values, for plans.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgewam.core.errors import EdgewamError

FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LARGEST = {"fp8": 448.0, "int8": 127.0, "int4": 7.0}  # the code of the largest weight
FORMATS = (*FLOATS, *LARGEST)
TINY = 1e-12  # scale of weights that are all zero


@dataclass(frozen=True)
class Packed:
    """codes [.., out, in] (INT4: uint8 [.., out, in / 2]); scale float32 [.., out] or [.., out, groups], None of floats."""

    codes: Tensor
    scale: Tensor | None = None


def pack(weight: Tensor, format: str, group: int = 0, name: str = "weight") -> Packed:
    """A weight [.., out, in] in a format; `group`: so many inputs share a scale, 0: all inputs of an output.

    Raises:
        EdgewamError: unknown format, a group that does not divide the inputs, or a weight (called `name`) that is not finite or
            too large for the format.
    """
    if format not in FORMATS:
        raise EdgewamError(f"Unknown format '{format}' of weights. Available: {', '.join(FORMATS)}.")
    check_finite(weight, name)
    weight = weight.detach()
    if format in FLOATS:
        codes = weight.to(FLOATS[format]).contiguous()
        if format == "float16" and not _is_finite(codes):
            raise EdgewamError(f"The weight '{name}' has values too large for float16. Compile with --precision bf16 or float32.")
        return Packed(codes)
    inputs = weight.shape[-1]
    if inputs % (group or 1) or (format == "int4" and inputs % 2):
        raise EdgewamError(
            f"The weight '{name}' has {inputs} inputs, which groups of {group or 2} do not divide. Give that layer another "
            "format, such as fp8_weights, in the plan."
        )
    values = weight.float().unflatten(-1, (-1, group or inputs))  # [.., out, groups, group]
    scale = (values.abs().amax(-1) / LARGEST[format]).clamp_min(TINY)
    codes = coded(values / scale[..., None], format).flatten(-2)
    return Packed(nibbles(codes) if format == "int4" else codes, scale if group else scale[..., 0].contiguous())


def coded(values: Tensor, format: str) -> Tensor:
    """Values in units of their scale as codes: integers rounded half to even, all saturated."""
    largest = LARGEST[format]
    if format == "fp8":
        return values.clamp(-largest, largest).to(torch.float8_e4m3fn)
    return values.round().clamp(-largest - 1, largest).to(torch.int8)


def nibbles(codes: Tensor) -> Tensor:
    """INT4 codes int8 [.., in] in -8..7 as bytes uint8 [.., in / 2]: input 2 i in the low half of byte i, 2 i + 1 in the high."""
    low, high = (codes + 8).to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
    return low | (high << 4)


def from_nibbles(packed: Tensor) -> Tensor:
    """Inverse of `nibbles`."""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2).to(torch.int8) - 8


def check_finite(weight: Tensor, name: str) -> None:
    """Raise EdgewamError naming tensor and first element where a weight is NaN or infinite."""
    if _is_finite(weight):
        return
    wrong = (~torch.isfinite(weight)).nonzero()
    raise EdgewamError(
        f"The weight '{name}' is not finite in {len(wrong)} of {weight.numel()} places, the first at {wrong[0].tolist()}. Train "
        "the policy again, or start from an earlier checkpoint."
    )


def _is_finite(weight: Tensor) -> bool:
    return weight.is_meta or bool(torch.isfinite(weight).all())

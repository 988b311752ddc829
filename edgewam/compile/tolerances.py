"""How far engines may be from the eager reference of the same precision, by what the stages are made of.

Relative to each output's maximum.  These catch wrong scales, forgotten biases and swapped inputs; whether a precision is good
enough for the robot is for the excess error ratio to say (`compile.excess_error`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgewam.core.stage import Stage, has_half_types
from edgewam.quantize.layers import quantized_layers


@dataclass(frozen=True)
class Allowed:
    """Of one stage, of a whole program, and how many times what was measured a bundle's self-test allows."""

    stage: float
    program: float
    margin: float


# Of a float32 program: the stage errors compounded over the steps.  Another processor sums in another order; a wrong weight is
# off by far more than twenty times that.
_FLOAT32_PROGRAM, _MARGIN = 1e-4, 20.0
# A quantised value on the border between two codes may fall on either side in another engine: one code is 1/127 of the range,
# and layers behind add to it.  Up to 0.04 was seen on `small`; wrong scales or a forgotten bias are off by 0.3 and more.
QUANTIZED = Allowed(0.1, 0.1, 3.0)  # the deviation from eager is made of such borders already, so 20 times would allow anything
# Two 16-bit engines round other intermediate values: 2^-9 of each, compounded over the layers of a stage.
HALF = Allowed(0.05, 0.1, 3.0)


# A GPU sums in another order than the processor of the reference, and its exp and tanh are its own; a program compounds its
# stages ten times as a float32 program of the processor may its own.  Not measured yet.
_FLOAT32_ON_A_GPU, _FLOAT32_PROGRAM_ON_A_GPU = 1e-4, 1e-3


def allowed_deviation(stages: Mapping[str, Stage], exact: float, on_gpu: bool = False) -> Allowed:
    """exact: what the backend allows for a float32 stage on the processor; on_gpu: of engines only, the reference never is."""
    if any(quantized_layers(stage) for stage in stages.values()):
        return QUANTIZED
    if has_half_types(stages):
        return HALF
    return Allowed(
        *((max(exact, _FLOAT32_ON_A_GPU), _FLOAT32_PROGRAM_ON_A_GPU) if on_gpu else (exact, _FLOAT32_PROGRAM)), _MARGIN
    )

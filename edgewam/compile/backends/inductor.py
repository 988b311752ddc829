"""Build half of `inductor`: the same exported program as `eager`; its kernels are compiled on the machine that runs it."""

from __future__ import annotations

from edgewam.compile.backends import eager
from edgewam.core.stage import Stage
from edgewam.runtime.engine import Support

PRECISIONS = ("float32", "bf16", "fp16")
TOLERANCE = 2e-5  # float32: fused kernels sum in vectors and approximate exp, a few units in the last place each
build = eager.build


def supports(stage: Stage) -> Support:
    """Every stage that can be exported, unless a plan wants integer products, which Inductor would compute in float32."""
    return eager.supports_float(stage, "Inductor")

"""Build half of `inductor`: the same exported program as `eager`; its kernels are compiled on the machine that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewam.compile.backends import eager
from edgewam.compile.build_options import ANY_MACHINE, BuildOptions
from edgewam.core.stage import Stage
from edgewam.runtime.engine import Support

PRECISIONS = ("float32", "bf16", "fp16")
REWRITES_LEFT_OUT: tuple[str, ...] = ()  # it gains from all of them
TOLERANCE = 2e-5  # float32: fused kernels sum in vectors and approximate exp, a few units in the last place each


def supports(stage: Stage) -> Support:
    """Every stage that can be exported, unless a plan wants integer products, which Inductor would compute in float32."""
    return eager.supports_float(stage, "Inductor")


def check(options: BuildOptions) -> None:
    """Its stages are for any machine, so a target is refused."""
    options.refuse_target("inductor")


def build(stage: Stage, directory: Path, options: BuildOptions = ANY_MACHINE) -> dict[str, Any]:
    """Write `<stage>.pt2` into `directory` and return the record that the run half reads."""
    return eager.build(stage, directory, options)

"""One way to run a kernel: tile sizes, splits, warps.  Autotuning chooses between the variants that an op offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """rows, outs, ins: tile sizes; an op that has no use for one ignores it.  splits: of the sum over `ins`.

    warps, stages: of Triton's compiler.  dependent: launched before the kernel in front has ended (programmatic dependent
    launch).  source: "triton" or "cuda".
    """

    rows: int
    outs: int
    ins: int
    splits: int = 1
    warps: int = 4
    stages: int = 3
    dependent: bool = False
    source: str = "triton"

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form; `from_json` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Variant:
        """Inverse of `to_json`."""
        return Variant(**data)

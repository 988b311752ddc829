"""How far two arrays are apart: the figures of gate 1, computed in float64."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Deviation:
    """`max_abs` = max |a - ref|; `relative` = max_abs / max |ref|; `cosine` of the flat arrays; `num_bad` = places with NaN
    or Inf on one side, equal infinities on both aside."""

    cosine: float
    max_abs: float
    relative: float
    num_bad: int

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        return asdict(self)

    def within(self, relative: float) -> bool:
        """Whether every value is finite and `self.relative` is at most the tolerance."""
        return self.num_bad == 0 and self.relative <= relative


def deviation(array: npt.NDArray[Any], reference: npt.NDArray[Any]) -> Deviation:
    """Compare an array with its reference of the same shape.  Infinities that the reference has too are no deviation.

    A deviation that is not a number, as after NaN, is reported as 1e300: JSON and comparisons stay usable.
    """
    assert array.shape == reference.shape, f"{array.shape} against {reference.shape}"
    a, b = array.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    odd = ~(np.isfinite(a) & np.isfinite(b))
    if num_bad := int((odd & (a != b)).sum()):
        return Deviation(0.0, 1e300, 1e300, num_bad)
    a, b = a[~odd], b[~odd]
    if a.size == 0:
        return Deviation(1.0, 0.0, 0.0, 0)
    max_abs, scale = float(np.abs(a - b).max()), float(np.abs(b).max())
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / norms if norms else float(max_abs == 0)
    return Deviation(min(cosine, 1.0), max_abs, max_abs / scale if scale else (0.0 if max_abs == 0 else 1e300), 0)

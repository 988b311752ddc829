"""Gate 2, the excess error ratio: how far a candidate is from its reference, in units of the reference's own spread.

Per frame: RMS(candidate - reference, same noise) / max(RMS(reference at noise a - reference at noise b), floor), in
normalised units, over 8 noise pairs.  Only trained weights may be judged: with random ones anything passes (DESIGN 6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import ContractError, GateError

NUM_PAIRS = 8
FLOOR = 0.01  # of an action's std: where the policy is certain, its spread must not make a harmless error look large

FloatArray = npt.NDArray[np.float64]
# (frame, noise float32 [horizon, D]) -> actions [chunk, D] in normalised units (divided by the action's std)
Sampler = Callable[[Any, npt.NDArray[np.float32]], npt.NDArray[Any]]


@dataclass(frozen=True)
class ExcessErrorLimits:
    """Largest ratio allowed at the median and at the 99th percentile over frames."""

    median: float
    p99: float


ENGINE_LIMITS = ExcessErrorLimits(0.01, 0.05)  # the same float32 arithmetic in another order
QUANTIZED_LIMITS = ExcessErrorLimits(0.1, 0.5)  # a tenth of the policy's own spread at the median, half of it at worst
DISTILLED_LIMITS = ExcessErrorLimits(0.5, 1.5)  # half the spread of the teacher at the median; its whole spread is rare


@dataclass(frozen=True)
class ExcessError:
    """Ratios and their parts: per frame [F], and per dimension [D] with frames pooled before dividing."""

    ratio: FloatArray
    error_rms: FloatArray
    spread_rms: FloatArray  # before the floor
    ratio_per_dim: FloatArray
    num_pairs: int
    floor: float

    @property
    def median(self) -> float:
        """Median ratio over frames."""
        return float(np.median(self.ratio))

    @property
    def p99(self) -> float:
        """99th percentile of the ratio over frames."""
        return float(np.percentile(self.ratio, 99))

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form; the denominator is reported beside the ratio."""
        return {
            "num_frames": len(self.ratio),
            "num_pairs": self.num_pairs,
            "median": self.median,
            "p99": self.p99,
            "max": float(self.ratio.max()),
            "error_rms_median": float(np.median(self.error_rms)),
            "spread_rms_median": float(np.median(self.spread_rms)),
            "spread_rms_min": float(self.spread_rms.min()),
            "floor": self.floor,
            "frames_at_floor": int((self.spread_rms < self.floor).sum()),
            "ratio_per_dim": self.ratio_per_dim.tolist(),
        }

    def require(self, limits: ExcessErrorLimits) -> None:
        """Raise GateError when the median or the p99 is beyond its limit."""
        if not (self.median <= limits.median and self.p99 <= limits.p99):
            worst = int(np.argmax(self.ratio_per_dim))
            raise GateError(
                f"Excess error ratio: median {self.median:.3g} (limit {limits.median:g}), p99 {self.p99:.3g} "
                f"(limit {limits.p99:g}) over {len(self.ratio)} frames; worst dimension {worst} at "
                f"{self.ratio_per_dim[worst]:.3g}. The candidate differs too much from its reference: train, distil or "
                "calibrate longer, or keep more precision."
            )


def excess_error(
    reference: Sampler, candidate: Sampler, frames: Iterable[Any], noise_shape: tuple[int, int], seed: int,
    num_pairs: int = NUM_PAIRS, floor: float = FLOOR,
) -> ExcessError:  # fmt: skip
    """Measure over frames with fixed noise: pair p of frame f always draws the same two noises for the same seed.

    Raises:
        ContractError: no frames.
        GateError: a result that is not finite.
    """
    errors, spreads = [], []
    for index, frame in enumerate(frames):
        rng = np.random.default_rng((seed, index))
        error, spread = [], []
        for _ in range(num_pairs):
            a, b = rng.standard_normal((2, *noise_shape)).astype(np.float32)
            at_a = _finite(reference(frame, a), "reference", index)
            error.append(_finite(candidate(frame, a), "candidate", index) - at_a)
            spread.append(_finite(reference(frame, b), "reference", index) - at_a)
        # mean squares per dimension [D] over pairs and chunk rows
        errors.append(np.mean(np.square(error), axis=(0, 1)))
        spreads.append(np.mean(np.square(spread), axis=(0, 1)))
    if not errors:
        raise ContractError("The excess error ratio needs at least one frame; give a dataset with episodes.")
    error_FD, spread_FD = np.array(errors), np.array(spreads)
    error_rms, spread_rms = np.sqrt(error_FD.mean(1)), np.sqrt(spread_FD.mean(1))
    per_dim = np.sqrt(error_FD.mean(0)) / np.maximum(np.sqrt(spread_FD.mean(0)), floor)
    return ExcessError(error_rms / np.maximum(spread_rms, floor), error_rms, spread_rms, per_dim, num_pairs, floor)


def _finite(actions: npt.NDArray[Any], side: str, index: int) -> FloatArray:
    values = np.asarray(actions, np.float64)
    if not np.isfinite(values).all():
        raise GateError(f"The {side} gives {int((~np.isfinite(values)).sum())} values that are not finite at frame {index}.")
    return values

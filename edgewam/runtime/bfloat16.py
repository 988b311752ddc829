"""bfloat16 on the host, which NumPy does not have: its 16 bits are the upper half of a float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_QUIET_NAN = np.uint16(0x7FC0)


def to_bits(values: Array) -> Array:
    """float32 -> the uint16 bits of the nearest bfloat16, ties to even; NaN stays NaN, what is too large becomes infinite."""
    wide = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # half of the last kept bit, less one where that bit is even: a tie then carries only into an odd one
    rounded = ((wide + (np.uint32(0x7FFF) + ((wide >> 16) & np.uint32(1)))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), _QUIET_NAN, rounded).reshape(np.shape(values))


def from_bits(bits: Array) -> Array:
    """The uint16 bits of bfloat16 -> float32, exact."""
    wide = np.ascontiguousarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32).reshape(np.shape(bits))

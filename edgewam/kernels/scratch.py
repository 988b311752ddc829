"""Scratch for parts of results, shared by all calls that write one tensor: such calls never run at the same time.

Without that, every layer of every step would have its own, and what they write would push weights out of L2.
"""

from __future__ import annotations

from weakref import WeakValueDictionary

import torch
from torch import Tensor

_KEPT: WeakValueDictionary[tuple[object, ...], Tensor] = WeakValueDictionary()


def scratch(kind: str, y: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros of `shape` on the device of `y`, the same ones for the same `kind` and `y`; they live as long as somebody holds them.

    Counters among them must be left at zero by every launch.
    """
    key = (kind, str(y.device), y.data_ptr(), shape, dtype)
    found = _KEPT.get(key)
    if found is None:
        found = _KEPT[key] = torch.zeros(shape, dtype=dtype, device=y.device)
    return found

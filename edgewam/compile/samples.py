"""Seeded random inputs for stages and programs, where nothing better than noise is known about them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime.engine import allocate
from edgewam.runtime.memory import host_spec


def random_inputs(specs: Iterable[TensorSpec], seed: int) -> dict[str, npt.NDArray[Any]]:
    """Arrays by name: normal for floats, the full range for uint8, coin flips for bool, zeros for other integers.

    Integers are indices here, and zero is the one index that is always inside.  What NumPy lacks comes as float32.
    """
    rng = np.random.default_rng(seed)
    return {spec.name: _random(spec, rng) for spec in specs}


def _random(spec: TensorSpec, rng: np.random.Generator) -> npt.NDArray[Any]:
    array = allocate(host_spec(spec))
    if spec.dtype.startswith("float"):
        return rng.standard_normal(spec.shape).astype(array.dtype)
    if spec.dtype == "uint8":
        return rng.integers(0, 256, spec.shape, dtype=np.uint8)
    if spec.dtype == "bool":
        return rng.integers(0, 2, spec.shape).astype(bool)
    return array

"""Name, shape and dtype of one tensor at a stage or program boundary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgewam.core.errors import ContractError

DTYPE_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3": 1,
    "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip

_TORCH_NAMES = {"float8_e4m3": "float8_e4m3fn"}
_OUR_NAMES = {theirs: ours for ours, theirs in _TORCH_NAMES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """A static tensor: `shape` in elements, `dtype` one of `DTYPE_BYTES`."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if self.dtype not in DTYPE_BYTES:
            raise ContractError(f"Tensor '{self.name}' has unknown dtype '{self.dtype}'. Known: {', '.join(DTYPE_BYTES)}.")
        if any(size < 0 for size in self.shape):
            raise ContractError(f"Tensor '{self.name}' has a negative size in shape {self.shape}.")

    @staticmethod
    def of(name: str, array: Any) -> TensorSpec:
        """Of an array or torch tensor.

        Raises:
            ContractError: a dtype that is not one of `DTYPE_BYTES`.
        """
        dtype = str(array.dtype).removeprefix("torch.")
        return TensorSpec(name, tuple(array.shape), _OUR_NAMES.get(dtype, dtype))

    @property
    def size_bytes(self) -> int:
        """Bytes the tensor occupies."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def torch_dtype(self) -> str:
        """What torch calls the dtype: an attribute of the module torch."""
        return _TORCH_NAMES.get(self.dtype, self.dtype)

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"

    def check(self, array: Any) -> None:
        """Raise ContractError unless `array` (anything with .shape and .dtype) fits this spec."""
        dtype = str(array.dtype).removeprefix("torch.")
        if tuple(array.shape) != self.shape or dtype != self.torch_dtype:
            raise ContractError(f"Tensor '{self.name}' must be {self}, got {dtype}{list(array.shape)}.")

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form; `from_json` is its inverse."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TensorSpec:
        """Inverse of `to_json`."""
        return TensorSpec(data["name"], tuple(data["shape"]), data["dtype"])

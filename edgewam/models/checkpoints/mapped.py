"""Tensors of a weight file as torch sees them, memory-mapped: nothing is read before it is used, nothing is written back."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from edgewam.models.checkpoints.entries import Entry

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2, "int64": torch.int64, "int32": torch.int32,
    "int16": torch.int16, "int8": torch.int8, "uint8": torch.uint8, "bool": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def mapped(entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """Every tensor with its stored dtype; changing one changes this process's copy of its pages, never the file."""
    files: dict[Path, mmap.mmap] = {}
    return {name: _tensor(entry, files) for name, entry in entries.items()}


def _tensor(entry: Entry, files: dict[Path, mmap.mmap]) -> Tensor:
    dtype = TORCH_DTYPES[entry.dtype]
    if not entry.numel:
        return torch.empty(entry.shape, dtype=dtype)
    if entry.path not in files:
        with open(entry.path, "rb") as file:
            files[entry.path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    flat = torch.frombuffer(files[entry.path], dtype=dtype, count=entry.span, offset=entry.offset)
    return flat.view(entry.shape) if entry.stride is None else flat.as_strided(entry.shape, entry.stride)

"""The host side of what crosses between host and GPU: page-locked arrays, and the rounding that NumPy has to do for bfloat16."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from edgewam.runtime import bfloat16
from edgewam.runtime.cuda_api import checked
from edgewam.runtime.memory import Array, Port


def stored_dtype(dtype: str) -> np.dtype[Any]:
    """NumPy's dtype for the bytes of a TensorSpec dtype."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def pinned(cudart: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Zeros in page-locked memory, from which the GPU copies while the processor goes on; unlocked with the last view."""
    size = math.prod(shape) * dtype.itemsize
    answer = cudart.cudaHostAlloc(max(1, size), cudart.cudaHostAllocDefault)
    pointer = int(checked(cudart, answer, f"pinning {size} bytes of host memory"))
    block = (ctypes.c_ubyte * size).from_address(pointer)
    weakref.finalize(block, cudart.cudaFreeHost, pointer)
    array: Array = np.frombuffer(memoryview(block), dtype).reshape(shape)
    array.fill(0)
    return array


def rounding_port(port: Port, wait: Callable[[], None]) -> Port:
    """A float32 port in front of one that holds bits of bfloat16.

    wait: until what was issued on the current stream is done; raises where a graph is captured, which cannot wait.
    """
    bits, upload, download = port.host, port.upload, port.download
    assert upload is not None and download is not None
    host = np.zeros(bits.shape, np.float32)

    def round_and_upload() -> None:
        wait()  # an upload before may still read the bits
        bits[...] = bfloat16.to_bits(host)
        upload()

    def download_and_widen() -> None:
        download()
        wait()
        host[...] = bfloat16.from_bits(bits)

    return Port(host, port.buffer, round_and_upload, download_and_widen)

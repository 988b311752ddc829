"""One kernel on trial: made-up operands, its result against the reference, its time over more memory than the cache holds.

The copies of the operands are bound one by one and run one after another (on a GPU as one CUDA graph), so that weights come from
memory as they do in a stage of many layers, where no two calls read the same.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from edgewam.core.errors import EdgewamError
from edgewam.kernels.bound import Run, bind_kernel, kernel_of, reference_of, split
from edgewam.kernels.call import Call
from edgewam.kernels.launch import CudaLaunch, Launch
from edgewam.kernels.target import Target
from edgewam.kernels.variant import Variant

# Of the largest value of a result: inputs of a product may fall to another FP8 neighbour, 2^-4 of one among a thousand terms, and
# a 16-bit result to another one, 2^-8; a wrong index or a missing term moves a result by tens of percent.
WRONG = 0.03
_CACHES = 2  # times the last-level cache, that all copies together fill
_MOST_COPIES = 256  # of operands that are small: in a stage, too, they are read from the cache that they were just written to
_HOST_CACHE = 1 << 20  # bytes, where the interpreter runs and times mean nothing
_WARM, _ROUNDS, _REPLAYS = 2, 3, 5


@dataclass(frozen=True)
class Operand:
    """A tensor without values: shape and stride in elements, torch's name of the dtype."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str

    @staticmethod
    def of(tensor: Tensor) -> Operand:
        """What a tensor looks like."""
        return Operand(tuple(tensor.shape), tensor.stride(), str(tensor.dtype).removeprefix("torch."))

    @property
    def size_bytes(self) -> int:
        """From its first to its last element."""
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        return (last + 1) * self.torch_dtype.itemsize if math.prod(self.shape) else 0

    @property
    def torch_dtype(self) -> torch.dtype:
        """As torch's object."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def empty(self, device: str) -> Tensor:
        """Memory of this form."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.torch_dtype, device=device)

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form; `from_json` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Operand:
        """Inverse of `to_json`."""
        return Operand(tuple(data["shape"]), tuple(data["stride"]), data["dtype"])


class Trial:
    """Candidates of one call.

    Args:
        call: that is tuned.
        operands: by role.
        target: what `device` is.
        device: torch device.
    """

    def __init__(self, call: Call, operands: Mapping[str, Operand], target: Target, device: str) -> None:
        self.call, self.target, self.device = call, target, device
        kernel = kernel_of(call.op)
        if kernel is None:
            raise EdgewamError(f"There is no kernel of the op '{call.op}' to tune.")
        self.kernel = kernel
        if device.startswith("cuda"):
            torch.cuda.set_device(device if ":" in device else 0)  # Triton launches on the current one
        generator = torch.Generator(device).manual_seed(0)
        first = {role: made_up(role, operand, device, generator) for role, operand in operands.items()}
        copies = _copies(sum(operand.size_bytes for operand in operands.values()), _cache_bytes(device))
        self.sets = [first] + [
            {role: operand.empty(device).copy_(first[role]) for role, operand in operands.items()} for _ in range(copies - 1)
        ]
        reads, self.writes = split(call, first)
        self.expected = reference_of(call.op)(**reads, **call.attributes)

    def candidates(self) -> tuple[str, tuple[Variant, ...]]:
        """Why the kernel does not take the call, or its variants."""
        why: str = self.kernel.support(self.call, self.sets[0], self.target)
        return why, () if why else self.kernel.variants(self.call, self.sets[0], self.target)

    def compile_ahead(self, variants: Sequence[Variant]) -> None:
        """Compile all candidates at once, a thread for each processor: else tuning would be waiting for compilers.

        What cannot be compiled fails when it is tried, where the failure has a name.
        """
        launches: list[Launch | CudaLaunch] = []
        for variant in variants:
            with contextlib.suppress(Exception):
                launches += self.kernel.launches(self.call, self.sets[0], variant, self.target)

        def attempt(launch: Launch | CudaLaunch) -> None:
            with contextlib.suppress(Exception):
                launch.compile()

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(attempt, launches))

    def wrong_by(self, variant: Variant) -> float:
        """Largest deviation of a result from the reference's, relative to the largest value there; inf where it is not finite."""
        for tensor in self.writes.values():
            tensor.fill_(torch.nan)  # what is not written shows
        bind_kernel(self.kernel, self.call, self.sets[0], variant, self.target)()
        deviations = []
        for role, tensor in self.writes.items():
            expected = self.expected[role].float()
            deviation = (tensor.float() - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo().tiny)
            deviations.append(float(deviation))
        return max(math.inf if math.isnan(deviation) else deviation for deviation in deviations)

    def milliseconds(self, variant: Variant) -> float:
        """Of one call, the best of several rounds."""
        runs = [bind_kernel(self.kernel, self.call, operands, variant, self.target) for operands in self.sets]
        return _on_gpu(runs) if self.device.startswith("cuda") else _on_host(runs)


def made_up(role: str, operand: Operand, device: str, generator: torch.Generator) -> Tensor:
    """An operand with values such as its role has."""
    out, dtype = operand.empty(device), operand.torch_dtype

    def uniform() -> Tensor:
        return torch.rand(operand.shape, generator=generator, device=device)

    if dtype == torch.bool:
        return out.copy_(uniform() < 0.5)
    if not dtype.is_floating_point:
        low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        return out.copy_((low + uniform() * (high - low)).round())
    if role == "memory_bias":  # 0 or -inf
        return out.copy_(torch.where(torch.arange(out.numel(), device=device) > 0, 0.0, -torch.inf).view(operand.shape))
    if role == "squares":  # sums over 64 columns
        return out.copy_(64 * (0.5 + uniform()))
    if role in ("weight_scale", "input_scale"):
        return out.copy_(0.01 * (0.5 + uniform()))
    return out.copy_(2 * uniform() - 1)


def _copies(size_bytes: int, cache_bytes: int) -> int:
    return min(max(math.ceil(_CACHES * cache_bytes / max(size_bytes, 1)), 2), _MOST_COPIES)


def _cache_bytes(device: str) -> int:
    return int(torch.cuda.get_device_properties(device).L2_cache_size) if device.startswith("cuda") else _HOST_CACHE


def _on_gpu(runs: Sequence[Run]) -> float:
    torch.cuda.synchronize()  # the operands are there
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # everything is compiled and loaded before the capture
        for run in runs:
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    for _ in range(_WARM):
        graph.replay()
    best = math.inf
    for _ in range(_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(_REPLAYS):
            graph.replay()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / _REPLAYS / len(runs))
    return best


def _on_host(runs: Sequence[Run]) -> float:
    best = math.inf
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for run in runs:
            run()
        best = min(best, (time.perf_counter() - start) * 1e3 / len(runs))
    return best

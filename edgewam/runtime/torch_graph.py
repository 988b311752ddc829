"""Calls on torch tensors as one CUDA graph.  A capture that fails leaves torch as it was, and says its first reason.

`torch.cuda.graph` does neither: when ending a capture fails, the capturing stream stays the current one, the memory pool stays
under capture, and every later capture of the process dies of that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from edgewam.runtime.memory import BoundCall, CaptureError, without_collection


def capture_graph(torch: Any, device: Any, calls: Sequence[BoundCall], stream: Any) -> BoundCall:
    """A replay of `calls`, launched on the current stream; it keeps alive what they are bound to.

    Raises:
        CaptureError: what the first failing call said.
    """
    before, pool, graph = torch.cuda.current_stream(device), torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
    first: list[Exception] = []
    try:
        # thread local: another thread may go on allocating
        recording = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
        with torch.inference_mode(), without_collection(), recording:
            try:
                for call in calls:
                    call()
            except Exception as error:
                first.append(error)
                raise
    except Exception as error:  # torch raises its own types, RuntimeError among them, for what a graph cannot hold
        torch.cuda.set_stream(before)
        _forget(torch, device, pool)
        cause = first[0] if first else error
        raise CaptureError(f"{type(cause).__name__}: {cause}") from cause

    def replay(kept: object = (graph, tuple(calls))) -> None:
        graph.replay()

    return replay


def _forget(torch: Any, device: Any, pool: Any) -> None:
    """Take the pool and the random generator out of a capture that never ended; private names, which versions may lack."""
    index = torch.cuda.current_device() if device.index is None else device.index
    undo: list[Callable[[], object]] = [
        lambda: torch._C._cuda_endAllocateToPool(index, pool),
        lambda: torch._C._cuda_releasePool(index, pool),
        lambda: torch.cuda.default_generators[index].graphsafe_set_state(torch.Generator(device).graphsafe_get_state()),
    ]
    for step in undo:
        with contextlib.suppress(Exception):
            step()

"""CUDA graphs: issue calls on a stream that records instead of running, and replay them with one launch.

A failed capture always ends: the stream is usable again, nothing is left behind, and CaptureError carries CUDA's own words.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from edgewam.runtime.cuda_api import CudaError, checked
from edgewam.runtime.memory import BoundCall, CaptureError, without_collection


class CudaGraph:
    """A recorded sequence; calling it launches all of it on the stream that is current then.

    num_nodes: kernels, copies and fills in it.
    """

    def __init__(self, cudart: Any, executable: Any, num_nodes: int, kept: object, current: Callable[[], Any]) -> None:
        self.rt, self.num_nodes = cudart, num_nodes
        self._executable, self._kept, self._current = executable, kept, current
        weakref.finalize(self, cudart.cudaGraphExecDestroy, executable)

    def __call__(self) -> None:
        """Launch; it does not wait."""
        checked(self.rt, self.rt.cudaGraphLaunch(self._executable, self._current()), "launching a graph")


def capture(cudart: Any, calls: Sequence[BoundCall], stream: Any, current: Callable[[], Any]) -> CudaGraph:
    """Record calls that issue their work on `stream`.

    Args:
        cudart: the module of cuda-python.
        calls: they run once, on the host only: what they issue is recorded.
        stream: handle; its work from before must be done or ordered before the graph's.
        current: gives the handle on which the graph is launched.

    Raises:
        CaptureError: a call that failed or did what a graph cannot hold, calls that issued nothing here, or a graph that the
            driver does not take.
    """
    # thread local: other threads may go on allocating, but a call of ours that allocates is an error
    mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    with _as_capture_error(cudart):
        checked(cudart, cudart.cudaStreamBeginCapture(stream, mode), "beginning to capture")
        try:
            with without_collection():
                for call in calls:
                    call()
        except BaseException:
            _abandon(cudart, stream)
            raise
        graph = checked(cudart, cudart.cudaStreamEndCapture(stream), "ending a capture")
        try:
            _, num_nodes = checked(cudart, cudart.cudaGraphGetNodes(graph), "counting the nodes of a graph")
            if calls and not num_nodes:
                raise CaptureError("the calls issued no work on the captured stream, so a graph of them would do nothing")
            executable = checked(cudart, cudart.cudaGraphInstantiate(graph, 0), "making a graph executable")
        finally:
            cudart.cudaGraphDestroy(graph)
        found = CudaGraph(cudart, executable, num_nodes, tuple(calls), current)
        # otherwise the first launch, which is a robot's first chunk, would carry the upload
        checked(cudart, cudart.cudaGraphUpload(executable, stream), "uploading a graph")
    return found


@contextlib.contextmanager
def _as_capture_error(cudart: Any) -> Iterator[None]:
    try:
        yield
    except CaptureError:
        raise
    except Exception as error:  # engines raise types of their own for what a graph cannot hold
        # libraries look at the last error after their own launches and would take this one for theirs
        cudart.cudaGetLastError()
        raise CaptureError(str(error) if isinstance(error, CudaError) else f"{type(error).__name__}: {error}") from error


def _abandon(cudart: Any, stream: Any) -> None:
    """Take the stream out of its capture; the reason is already on its way."""
    status, graph = cudart.cudaStreamEndCapture(stream)
    if status == cudart.cudaError_t.cudaSuccess:
        cudart.cudaGraphDestroy(graph)

"""A device in NumPy that works like CUDA: nothing runs before its stream is waited for, the host is apart, graphs replay."""

import contextlib

import numpy as np

from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime.memory import CaptureError, HostMemory, Port


class FakeDevice(HostMemory):
    """`forbid` makes a capture fail as a host synchronisation inside would; `stale` makes replays read what capture read."""

    def __init__(self, forbid: bool = False, stale: bool = False) -> None:
        self.default: list = []
        self.current, self.recording = self.default, None
        self.streams: list[list] = [self.default]
        self.forbid, self.stale = forbid, stale
        self.num_graphs = self.num_launches = 0

    def issue(self, work) -> None:
        """What an engine does with its work: put it on the current stream, or into the graph that is being captured."""
        (self.recording if self.recording is not None else self.current).append(work)

    def copy(self, target, source):
        return lambda: self.issue(lambda: np.copyto(target, source))

    def port(self, spec: TensorSpec, buffer=None) -> Port:
        held = self.allocate(spec) if buffer is None else buffer
        host = np.zeros_like(held)
        return Port(host, held, self.copy(held, host), self.copy(host, held))

    def stream(self, priority: int = 0):
        self.streams.append([])
        return self.streams[-1]

    @contextlib.contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def synchronize(self, stream=None) -> None:
        assert self.recording is None, "a host synchronisation inside a capture"
        for queue in self.streams if stream is None else [stream]:
            while queue:
                queue.pop(0)()

    def is_idle(self, stream) -> bool:
        return not stream

    def capture(self, calls, stream):
        if self.forbid:
            raise CaptureError("operation not permitted when stream is capturing")
        self.recording = []
        for call in calls:
            call()
        graph, self.recording = self.recording, None
        self.num_graphs += 1
        frozen = []

        def work() -> None:
            if self.stale and frozen:
                return
            frozen.append(True)
            for node in graph:
                node()

        def launch() -> None:
            self.num_launches += 1
            self.issue(work)

        return launch


class DeviceEngine:
    """A stage in NumPy on a fake device; like a real engine it writes its outputs before it has read all inputs."""

    def __init__(self, stage, function, device: FakeDevice) -> None:
        self.stage, self.function, self.device, self.num_binds = stage, function, device, 0

    def bind(self, inputs, outputs):
        self.num_binds += 1

        def work() -> None:
            given = {name: array.copy() for name, array in inputs.items()}
            results = dict(zip((s.name for s in self.stage.outputs), self.function(**given), strict=True))
            for name, array in outputs.items():
                array[...] = results[name]

        return lambda: self.device.issue(work)

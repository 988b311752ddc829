"""Time work on a device: wall clock around a synchronised call, and device events between its stages.

On a processor the same code runs with wall-clock marks, so that every job can be tried without a GPU.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

from edgewam.profiles.contract import TimingContract
from edgewam.profiles.machine import Machine, read_machine
from edgewam.profiles.measure import Timing

Mark = Callable[[str], None]


def synchronize(device: str) -> None:
    """Wait until the device has done all it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


class StageClock:
    """Marks along one call.  `start()`, then `mark(name)` after each stage was issued, then `finish()`; repeat.

    A stage that is marked several times in a call (a denoise step) gives one sample for each.
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = device != "cpu"
        self._marks: list[tuple[str, object]] = []
        self.samples_ms: dict[str, list[float]] = {}
        self.device_ms: list[float] = []

    def start(self) -> None:
        """Begin a call."""
        self._marks = [("", self._now())]

    def mark(self, name: str) -> None:
        """The stage `name` ends here."""
        self._marks.append((name, self._now()))

    def finish(self) -> None:
        """End a call: wait for the device and keep the differences."""
        if self._on_gpu:
            torch.cuda.synchronize()
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            self.samples_ms.setdefault(name, []).append(self._elapsed_ms(before, after))
        self.device_ms.append(self._elapsed_ms(self._marks[0][1], self._marks[-1][1]))

    def timings(self) -> dict[str, Timing]:
        """One timing per stage, in the order of their first marks."""
        return {name: Timing.from_samples(samples) for name, samples in self.samples_ms.items()}

    def _now(self) -> object:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _elapsed_ms(self, before: object, after: object) -> float:
        if isinstance(before, float) and isinstance(after, float):
            return (after - before) * 1e3
        return before.elapsed_time(after)  # type: ignore[attr-defined,no-any-return]


def time_stages(function: Callable[[Mark], object], device: str, n: int, warmup: int) -> tuple[Timing, Timing, dict[str, Timing]]:
    """Call `function(mark)` and return (wall clock, device clock, stages): `n` calls each, after `warmup`.

    The wall clock is taken in calls of their own, without marks: recording events costs a little on the host.
    """
    for _ in range(warmup):
        function(lambda _: None)
    synchronize(device)
    wall_ms = []
    for _ in range(n):
        start = time.perf_counter()
        function(lambda _: None)
        synchronize(device)
        wall_ms.append((time.perf_counter() - start) * 1e3)
    clock = StageClock(device)
    for _ in range(n):
        clock.start()
        function(clock.mark)
        clock.finish()
    return Timing.from_samples(wall_ms), Timing.from_samples(clock.device_ms), clock.timings()


def time_device(function: Callable[[], object], device: str, n: int, warmup: int) -> Timing:
    """Device time of each of `n` calls that are issued one after the other without waiting, after `warmup` calls."""
    for _ in range(warmup):
        function()
    synchronize(device)
    if device == "cpu":
        clock = StageClock(device)
        for _ in range(n):
            clock.start()
            function()
            clock.mark("")
            clock.finish()
        return Timing.from_samples(clock.device_ms)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(n)]
    for start, end in events:
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return Timing.from_samples(start.elapsed_time(end) for start, end in events)


def capture(function: Callable[[], object], device: str) -> Callable[[], None]:
    """A replay of `function` as one CUDA graph; on a processor, the function itself."""
    if device == "cpu":

        def call() -> None:
            function()

        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()

    def replay(kept: object = function) -> None:  # the graph holds addresses only
        graph.replay()

    return replay


@functools.lru_cache(maxsize=1)
def _machine(_: int) -> Machine:
    """Facts of this moment, read again every five seconds: nvidia-smi is slow beside a small measurement."""
    return read_machine()


def gpu_contract(
    device: str, *, engine: str, precision: str, steps: int, shapes: dict[str, tuple[int, ...]], stages: tuple[str, ...],
    host_copies: bool, warmup: int, n: int, clock: str, notes: str = "",
) -> TimingContract:  # fmt: skip
    """The contract of a job, with the machine's facts read now; CUDA and cuDNN versions among them."""
    contract = TimingContract.here(
        engine=engine, precision=precision, steps=steps, shapes=shapes, stages=stages, host_copies=host_copies,
        threads=torch.get_num_threads(), warmup=warmup, n=n, on_gpu=device != "cpu",
        clock=clock if device != "cpu" else "wall", notes=notes, machine=_machine(int(time.monotonic() // 5)),
    )  # fmt: skip
    extra = {"cuda": torch.version.cuda or "none", "torch": torch.__version__}
    if device != "cpu":
        extra["cudnn"] = str(torch.backends.cudnn.version())
    return TimingContract.from_json(contract.to_json() | {"versions": {**contract.versions, **extra}})

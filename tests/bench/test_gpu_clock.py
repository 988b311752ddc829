"""Clocks of GPU jobs: stages are differences of marks; the branches for a device run against a stand-in for torch.cuda."""

import contextlib
import time
from types import SimpleNamespace

import pytest

from benchmarks.gpu import gpu_clock


class FakeEvent:
    def __init__(self, enable_timing):
        assert enable_timing
        self.at = None

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


class FakeStream:
    def wait_stream(self, other):
        assert isinstance(other, FakeStream)


class FakeGraph:
    """Notes what ran while it was captured."""

    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1


@pytest.fixture
def fake_cuda(monkeypatch):
    log = SimpleNamespace(synchronized=0, captures=0)

    @contextlib.contextmanager
    def graph(_):
        log.captures += 1
        yield

    def synchronize():
        log.synchronized += 1

    cuda = SimpleNamespace(
        Event=FakeEvent, Stream=FakeStream, CUDAGraph=FakeGraph, current_stream=FakeStream, graph=graph,
        stream=lambda _: contextlib.nullcontext(), synchronize=synchronize,
    )  # fmt: skip
    monkeypatch.setattr(gpu_clock.torch, "cuda", cuda)
    return log


def two_stages(mark):
    time.sleep(0.004)
    mark("slow")
    time.sleep(0.001)
    mark("fast")
    mark("fast")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_stages_are_the_times_between_marks(device, fake_cuda):
    wall, on_device, stages = gpu_clock.time_stages(two_stages, device, n=3, warmup=1)
    assert wall.n == on_device.n == 3 and list(stages) == ["slow", "fast"]
    assert stages["slow"].n == 3 and stages["fast"].n == 6
    assert stages["slow"].p50_ms >= 4.0 and on_device.p50_ms >= 5.0 and wall.p50_ms >= 5.0
    total = 3 * stages["slow"].mean_ms + 6 * stages["fast"].mean_ms
    assert total == pytest.approx(3 * on_device.mean_ms)
    assert (fake_cuda.synchronized > 0) == (device == "cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_device_time_has_one_sample_per_call(device, fake_cuda):
    calls = []
    timing = gpu_clock.time_device(lambda: (calls.append(0), time.sleep(0.002)), device, n=4, warmup=2)
    assert timing.n == 4 and len(calls) == 6 and timing.p50_ms >= 2.0


def test_a_capture_warms_up_then_replays(fake_cuda):
    calls = []
    replay = gpu_clock.capture(lambda: calls.append(0), "cuda")
    replay()
    assert fake_cuda.captures == 1 and len(calls) == 4  # three warm-ups and the capture itself; a replay runs no Python


def test_without_a_device_a_capture_is_the_function(fake_cuda):
    calls = []
    gpu_clock.capture(lambda: calls.append(0) or [1], "cpu")()
    assert calls == [0] and fake_cuda.captures == 0

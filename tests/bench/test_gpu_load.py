"""The load loop on a clock of its own: what is late, left out or skipped is what the arithmetic says."""

import pytest

from benchmarks.gpu import under_load
from benchmarks.gpu.under_load import _Loop


class Clock:
    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        self.now += 1e-6  # looking costs a little, else a spin never ends
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Device:
    """A pipeline whose chunks and refreshes take fixed times, side by side."""

    def __init__(self, clock, chunk_s, refresh_s):
        self.clock, self.takes, self.end = clock, {"act": chunk_s, "plan": refresh_s}, {}

    def start(self, program, inputs):
        assert program not in self.end
        self.end[program] = self.clock.now + self.takes[program]

    def is_done(self, program):
        return self.clock.now >= self.end[program]

    def finish(self, program):
        self.clock.now = max(self.clock.now, self.end.pop(program))


class Inputs:
    class config:
        memory_slots = 6

    def act_inputs(self):
        return {}

    def plan_inputs(self, number):
        return {"number": number}


@pytest.fixture
def play(monkeypatch):
    def run(chunk_ms, refresh_ms, chunks=40, hz=50.0, every=2):
        clock = Clock()
        monkeypatch.setattr(under_load, "time", clock)
        device = Device(clock, chunk_ms / 1e3, refresh_ms / 1e3)
        loop = _Loop(Inputs(), device, hz, every).run(chunks)
        assert not device.end  # nothing is left running
        return loop, clock.now - 100.0

    return run


def test_a_card_that_keeps_up_is_late_with_nothing(play):
    loop, seconds = play(chunk_ms=5, refresh_ms=18)
    figures = loop.figures()
    assert figures == {
        "skipped_ticks": 0, "refreshes": 20, "refresh_limit_ms": 40, "refreshes_over_limit": 0, "refreshes_left_out": 0
    }  # fmt: skip
    assert seconds == pytest.approx(40 / 50, abs=0.03)
    timings = loop.timings()
    assert timings["L_chunk"].p50_ms == pytest.approx(5, abs=0.1) and timings["from_due"].p99_ms == pytest.approx(5, abs=0.2)
    assert timings["refresh"].p50_ms == pytest.approx(18, abs=0.5)


def test_a_refresh_that_takes_too_long_leaves_the_next_one_out(play):
    figures = play(chunk_ms=5, refresh_ms=50)[0].figures()
    assert figures["refreshes_over_limit"] == figures["refreshes"] == 10 and figures["refreshes_left_out"] == 10


def test_a_late_chunk_skips_the_tick_that_it_missed(play):
    loop, seconds = play(chunk_ms=25, refresh_ms=1, every=0, chunks=10)
    assert loop.skipped_ticks == 10 and loop.figures()["refreshes"] == 0 and "refresh" not in loop.timings()
    assert seconds == pytest.approx(10 / 25, abs=0.03)
    assert loop.timings()["from_due"].max_ms == pytest.approx(25, abs=0.2)  # a skipped tick is not caught up with


def test_saturated_means_no_pause_between_chunks_or_refreshes(play):
    loop, seconds = play(chunk_ms=5, refresh_ms=12, hz=0.0, every=1, chunks=30)
    assert seconds == pytest.approx(30 * 5e-3, abs=0.02) and len(loop.refresh_ms) == 10
    assert "refresh_limit_ms" not in loop.figures()

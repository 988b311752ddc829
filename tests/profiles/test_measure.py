"""Timings: percentiles of known samples, the number of calls, and what is refused."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewam.core.errors import EdgewamError
from edgewam.profiles.measure import Timing, measure, measure_interleaved

samples = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=200)


def test_percentiles_of_0_to_100_are_their_own_names():
    timing = Timing.from_samples(float(i) for i in range(101))
    assert (timing.n, timing.p50_ms, timing.p95_ms, timing.p99_ms, timing.max_ms, timing.mean_ms) == (101, 50, 95, 99, 100, 50)


def test_percentiles_interpolate_between_order_statistics():
    assert Timing.from_samples([1.0, 2.0]).p50_ms == 1.5
    assert Timing.from_samples([0.0, 10.0]).p99_ms == pytest.approx(9.9)


@given(samples)
def test_percentiles_are_ordered_and_do_not_depend_on_sample_order(values):
    timing = Timing.from_samples(values)
    assert timing.p50_ms <= timing.p95_ms <= timing.p99_ms <= timing.max_ms == max(values)
    shuffled = Timing.from_samples(values[::-1])
    assert (shuffled.p50_ms, shuffled.p99_ms, shuffled.max_ms) == (timing.p50_ms, timing.p99_ms, timing.max_ms)


@given(samples, st.booleans())
def test_json_round_trips_with_and_without_samples(values, keep):
    timing = Timing.from_samples(values, keep)
    assert Timing.from_json(timing.to_json()) == timing
    assert ("samples_ms" in timing.to_json()) == keep


def test_warm_up_calls_run_but_are_not_counted():
    calls = []
    timing = measure(lambda: calls.append(len(calls)), n=7, warmup=3, keep=True)
    assert len(calls) == 10 and timing.n == len(timing.samples_ms) == 7


def test_a_slow_warm_up_does_not_reach_the_samples():
    calls = []

    def slow_at_first():
        calls.append(0)
        time.sleep(0.05 if len(calls) == 1 else 0.002)

    timing = measure(slow_at_first, n=3, warmup=1)
    assert 2.0 <= timing.p50_ms < 45.0


def test_interleaved_functions_take_turns():
    order = []
    timings = measure_interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, n=3, warmup=1)
    assert "".join(order) == "abababab" and {name: t.n for name, t in timings.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [-1.0], [float("inf")]])
def test_samples_that_are_no_durations_are_refused(bad):
    with pytest.raises(EdgewamError):
        Timing.from_samples(bad)


@pytest.mark.parametrize(("n", "warmup"), [(0, 1), (1, -1)])
def test_counts_out_of_range_are_refused(n, warmup):
    with pytest.raises(EdgewamError, match="n >= 1"):
        measure(lambda: None, n, warmup)
    with pytest.raises(EdgewamError, match="n >= 1"):
        measure_interleaved({"a": lambda: None}, n, warmup)

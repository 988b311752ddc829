"""The delay that real-time chunking conditions on: measured, bounded, never from a first chunk."""

import numpy as np
import pytest

from edgewam.robot_bridge.control.delay import DelayEstimator, committed


def measured(delays, limit=8, window=10):
    """An estimator whose chunks 1, 2, ... were all applied with these delays."""
    estimator = DelayEstimator(limit, window)
    for number, delay in enumerate(delays, 1):
        estimator.sent(number, is_first=False)
        estimator.hear(number, delay)
    return estimator


def test_nothing_measured_means_the_limit():
    assert DelayEstimator(6).ticks == 6


def test_the_estimate_is_the_largest_of_the_last_ten_delays():
    assert measured([3, 2, 2]).ticks == 3
    assert measured([5, *[2] * 9]).ticks == 5
    assert measured([5, *[2] * 10]).ticks == 2
    assert measured([2, 30]).ticks == 8, "more than the weights were trained for is never asked of them"


def test_the_first_chunk_of_an_episode_does_not_count():
    estimator = measured([2])
    estimator.sent(2, is_first=True)
    estimator.hear(2, 7)
    assert estimator.ticks == 2
    estimator.sent(3, is_first=False)
    estimator.hear(3, 4)
    assert estimator.ticks == 4


def test_one_chunk_is_counted_once_and_a_predecessors_never():
    estimator = measured([2])
    for _ in range(20):
        estimator.hear(1, 2)
    assert estimator.ticks == 2
    restarted = DelayEstimator(8)
    restarted.hear(41, 3)  # applied before this engine had sent anything
    assert restarted.ticks == 8


def test_a_chunk_that_was_refused_raises_the_estimate_until_one_is_applied():
    estimator = measured([2])
    for number in (2, 3, 4):
        estimator.sent(number, is_first=False)
        estimator.hear(1, 2)
    assert estimator.ticks == 5
    for number in range(5, 15):
        estimator.sent(number, is_first=False)
        estimator.hear(number, 3)
    assert estimator.ticks == 3


def test_committed_rows_are_those_of_the_ticks_and_end_with_the_chunk():
    actions = np.arange(32, dtype=np.float32).reshape(16, 2)
    np.testing.assert_array_equal(committed(actions, 100, 108, 3), actions[8:11])
    np.testing.assert_array_equal(committed(actions, 100, 114, 5), actions[14:])
    assert committed(actions, 100, 116, 5).shape == (0, 2)
    assert committed(actions, 100, 99, 1).shape == (0, 2)


@pytest.mark.parametrize(("tick", "expected"), [(104, [2, 3, 4]), (105, [2.5, 3.5, 4.5]), (101, [0.5, 1.5, 2.5])])
def test_rows_of_a_slower_policy_are_met_on_the_straight_line_between_them(tick, expected):
    actions = np.arange(8, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(committed(actions, 100, tick, 3, ticks_per_row=2)[:, 0], expected)

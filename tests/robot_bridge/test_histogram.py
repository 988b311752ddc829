"""Histograms of a run: every sample is counted once, in its bin or in the outermost one."""

import numpy as np
import pytest

from edgewam.robot_bridge.histogram import AGE_EDGES_MS, LATENESS_EDGES_MS, histogram


def test_every_sample_is_counted_in_its_bin():
    found = histogram(np.array([0, 10_000, 30_000, 30_001, 900_000_000]), (0.0, 0.02, 0.05, 1.0))
    assert found == {"edges_ms": [0.0, 0.02, 0.05, 1.0], "counts": [2, 2, 1]}


@pytest.mark.parametrize("edges", [LATENESS_EDGES_MS, AGE_EDGES_MS])
def test_bins_rise_and_lose_nothing(edges):
    assert list(edges) == sorted(set(edges)) and edges[0] == 0.0
    samples = np.random.default_rng(0).exponential(5e6, 1000).astype(np.int64)
    assert sum(histogram(samples, edges)["counts"]) == 1000


def test_no_samples_give_empty_bins():
    assert sum(histogram(np.array([], np.int64), AGE_EDGES_MS)["counts"]) == 0

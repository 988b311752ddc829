"""Histograms of a run: every sample is counted once, and quantiles are right to one bin, however the samples arrive."""

import numpy as np
import pytest

from edgewam.robot_bridge.counting.histogram import AGE_EDGES_MS, LATENESS_EDGES_MS, CoarseCounts, FineCounts, Quantiles


def coarse(samples, edges):
    counts = CoarseCounts(edges)
    counts.add(np.array(samples, np.int64))
    return counts.to_json()


def test_every_sample_is_counted_in_its_bin():
    found = coarse([0, 10_000, 30_000, 30_001, 900_000_000], (0.0, 0.02, 0.05, 1.0))
    assert found == {"edges_ms": [0.0, 0.02, 0.05, 1.0], "counts": [2, 2, 1]}


@pytest.mark.parametrize("edges", [LATENESS_EDGES_MS, AGE_EDGES_MS])
def test_bins_rise_and_lose_nothing(edges):
    assert list(edges) == sorted(set(edges)) and edges[0] == 0.0
    samples = np.random.default_rng(0).exponential(5e6, 1000).astype(np.int64)
    assert sum(coarse(samples, edges)["counts"]) == 1000


def test_no_samples_give_empty_bins_and_no_quantiles():
    assert sum(coarse([], AGE_EDGES_MS)["counts"]) == 0
    counts = FineCounts(10, 100)
    counts.add(np.zeros(0, np.int64))
    assert counts.quantiles(1) == Quantiles(0) and counts.quantile(0.5) is None


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_quantiles_are_those_of_the_sorted_samples_to_one_bin(batch):
    samples = np.random.default_rng(1).exponential(2e6, 1000).astype(np.int64)
    counts = FineCounts(1_000, 100_000_000)
    for begin in range(0, 1000, batch):
        counts.add(samples[begin : begin + batch])
    ordered = np.sort(samples)
    for share in (0.001, 0.5, 0.9, 0.99, 1.0):
        exact = ordered[int(np.ceil(share * 1000)) - 1]
        assert exact <= counts.quantile(share) <= exact + 1_000
    assert counts.quantiles(1_000_000).max == round(ordered[-1] / 1e6, 3)


def test_a_sample_beyond_the_limit_is_given_as_the_largest_one_and_a_bin_s_end_belongs_to_it():
    counts = FineCounts(10, 100)
    counts.add(np.array([-5, 10, 11, 5_000]))
    assert counts.quantile(0.5) == 10 and counts.quantile(0.75) == 20 and counts.quantile(1.0) == 5_000
    assert counts.quantiles(1) == Quantiles(4, 10, 5_000, 5_000)

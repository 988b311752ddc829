"""Intervals and tests against closed forms, published tables and brute force."""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.evaluation import statistics as s


def test_clopper_pearson_has_its_closed_form_at_the_ends():
    for n in (1, 10, 200):
        assert s.clopper_pearson(0, n).low == 0 and s.clopper_pearson(n, n).high == 1
        assert s.clopper_pearson(0, n).high == pytest.approx(1 - 0.025 ** (1 / n), abs=1e-12)
        assert s.clopper_pearson(n, n).low == pytest.approx(0.025 ** (1 / n), abs=1e-12)


def test_clopper_pearson_cuts_off_exactly_its_tails():
    for k, n in ((1, 3), (49, 50), (190, 200), (700, 1000)):
        found = s.clopper_pearson(k, n)
        assert s.upper_tail(k, n, found.low) == pytest.approx(0.025, abs=1e-9)
        assert s.lower_tail(k, n, found.high) == pytest.approx(0.025, abs=1e-9)


def test_published_intervals_of_one_proportion():
    """Newcombe, Statistics in Medicine 17 (1998) 857, table I: 81/263, 15/148, 0/20, 1/29."""
    table = {
        (81, 263): ((0.2553, 0.3662), (0.2527, 0.3676)),
        (15, 148): ((0.0624, 0.1605), (0.0578, 0.1617)),
        (0, 20): ((0.0000, 0.1611), (0.0000, 0.1684)),
        (1, 29): ((0.0061, 0.1718), (0.0009, 0.1776)),
    }
    for counts, (score, exact) in table.items():
        for found, expected in ((s.wilson(*counts), score), (s.clopper_pearson(*counts), exact)):
            assert (found.low, found.high) == pytest.approx(expected, abs=6e-5)


def test_binomial_tails_agree_with_exact_fractions():
    rate = Fraction(3, 10)
    exact = sum(math.comb(12, k) * rate**k * (1 - rate) ** (12 - k) for k in range(5))
    assert s.lower_tail(4, 12, 0.3) == pytest.approx(float(exact), rel=1e-13)
    assert s.lower_tail(4, 12, 0.3) + s.upper_tail(5, 12, 0.3) == pytest.approx(1, rel=1e-13)
    assert s.lower_tail(3, 9, 0.0) == 1 and s.upper_tail(9, 9, 1.0) == 1


def test_published_paired_difference():
    """Fagerland et al., Statistics in Medicine 33 (2014) 2850: airway study, 1, 1, 7, 12 of 21."""
    found = s.tango_interval(1, 7, 21)
    assert (found.low, found.high) == pytest.approx((-0.517, -0.026), abs=6e-4)
    assert s.mcnemar_exact(1, 7) == pytest.approx(0.0703125)


def test_tango_without_differences_is_the_score_interval_of_zero():
    """With no differing pair the bound solves n d^2 / (d (1 + d)) = z^2 at -d, so d = z^2 / (n + z^2)."""
    z = NormalDist().inv_cdf(0.95)
    for n in (20, 200):
        assert s.tango_lower_bound(0, 0, n) == pytest.approx(-z * z / (n + z * z), abs=1e-9)


def test_the_score_statistic_uses_the_likeliest_rates_by_brute_force():
    for b, c, n, difference in ((3, 5, 50, -0.1), (0, 4, 60, -0.03), (10, 2, 40, 0.05)):
        low = max(0.0, -difference)
        rates = np.linspace(low, (1 - difference) / 2, 2_000_001)[1:-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = (n - b - c) * np.log(1 - 2 * rates - difference)
            terms += (b * np.log(rates + difference) if b else 0) + (c * np.log(rates) if c else 0)
        rate = rates[np.nanargmax(terms)]
        expected = (b - c - n * difference) / math.sqrt(n * (2 * rate + difference * (1 - difference)))
        assert s.tango_score(b, c, n, difference) == pytest.approx(expected, abs=1e-4)


def test_the_bound_is_where_the_score_reaches_its_quantile():
    z = NormalDist().inv_cdf(0.95)
    for b, c, n in ((0, 4, 200), (7, 3, 200), (50, 0, 50), (0, 50, 50)):
        bound = s.tango_lower_bound(b, c, n)
        assert -1 <= bound <= (b - c) / n
        if bound > -1 + 1e-9:
            assert s.tango_score(b, c, n, bound) == pytest.approx(z, abs=1e-6)


def test_mcnemar_is_a_fair_coin():
    assert s.mcnemar_exact(0, 0) == 1
    assert s.mcnemar_exact(5, 5) == 1
    assert s.mcnemar_exact(0, 6) == s.mcnemar_exact(6, 0) == pytest.approx(2 / 64)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_counts_are_refused(k, n):
    with pytest.raises(EdgewamError):
        s.wilson(k, n)

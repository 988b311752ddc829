"""Intervals and tests for success counts: one proportion, and the difference of two judged on the same seeds.

Clopper-Pearson 1934, Wilson 1927, Tango 1998 (score interval of a paired difference), McNemar 1947 (exact form).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

from edgewam.core.errors import EdgewamError

_BISECTIONS = 60  # halves [-1, 1] beyond double precision of a rate


@dataclass(frozen=True)
class Interval:
    """A two-sided interval of a rate, both ends in [0, 1] (or of a difference, in [-1, 1])."""

    low: float
    high: float


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Score interval of a success rate."""
    _check(successes, trials)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, scale = successes / trials, 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return Interval(low, 1.0 if successes == trials else min(1.0, centre + half))


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Exact interval of a success rate: covers with at least the confidence, whatever the true rate."""
    _check(successes, trials)
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else _root(lambda p: upper_tail(successes, trials, p) - tail, 0.0, 1.0)
    high = 1.0 if successes == trials else _root(lambda p: tail - lower_tail(successes, trials, p), 0.0, 1.0)
    return Interval(low, high)


def lower_tail(successes: int, trials: int, rate: float) -> float:
    """P(X <= successes) for a binomial X."""
    return math.fsum(_binomial(k, trials, rate) for k in range(successes + 1))


def upper_tail(successes: int, trials: int, rate: float) -> float:
    """P(X >= successes) for a binomial X."""
    return math.fsum(_binomial(k, trials, rate) for k in range(successes, trials + 1))


def _binomial(k: int, n: int, rate: float) -> float:
    if rate <= 0.0 or rate >= 1.0:
        return float(k == (0 if rate <= 0.0 else n))
    choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(choose + k * math.log(rate) + (n - k) * math.log1p(-rate))


def tango_score(only_first: int, only_second: int, trials: int, difference: float) -> float:
    """Tango's score statistic, standard normal if the rate of the first minus that of the second is `difference`.

    only_first, only_second: seeds on which only that one succeeded.
    """
    if difference <= -1.0:
        return math.inf
    if difference >= 1.0:
        return -math.inf
    # the likeliest rate of "only the second" under the given difference, from the quadratic a x^2 + b x + c = 0
    a = 2.0 * trials
    b = -only_first - only_second + (2 * trials - only_first + only_second) * difference
    c = -only_second * difference * (1 - difference)
    rate = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = trials * (2 * rate + difference * (1 - difference))
    excess = only_first - only_second - trials * difference
    if variance <= 0.0:
        return 0.0 if excess == 0.0 else math.copysign(math.inf, excess)
    return excess / math.sqrt(variance)


def tango_lower_bound(only_first: int, only_second: int, trials: int, confidence: float = 0.95) -> float:
    """One-sided lower bound of (rate of the first) - (rate of the second), in [-1, 1].

    Non-inferiority of the first by a margin m is shown when the bound is above -m.
    """
    _check(only_first + only_second, trials)
    z = NormalDist().inv_cdf(confidence)
    estimate = (only_first - only_second) / trials
    return _root(lambda difference: z - tango_score(only_first, only_second, trials, difference), -1.0, estimate)


def tango_interval(only_first: int, only_second: int, trials: int, confidence: float = 0.95) -> Interval:
    """Two-sided score interval of the difference: the lower bound, and its mirror image."""
    one_sided = 0.5 + confidence / 2
    low = tango_lower_bound(only_first, only_second, trials, one_sided)
    return Interval(low, -tango_lower_bound(only_second, only_first, trials, one_sided))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p value of "both succeed equally often", from the seeds on which they differ."""
    differing = only_first + only_second
    if differing == 0:
        return 1.0
    return min(1.0, 2 * lower_tail(min(only_first, only_second), differing, 0.5))


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that rises from below zero at `low` to above zero at `high` crosses it."""
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if function(middle) < 0.0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _check(successes: int, trials: int) -> None:
    if not 0 <= successes <= trials or trials == 0:
        raise EdgewamError(f"Cannot judge {successes} of {trials} episodes; at least one episode is needed.")

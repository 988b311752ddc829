"""The plan `auto`: an integer layer only where it is measured to be faster, or its weights matter, and the error allows it.

Single errors add up like independent noise (root of the sum of squares), which predicts the whole well enough to decide what
goes first (`choose`); then the whole is measured, and chosen again with another budget if that was too much or too little
(`search`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgewam.core.errors import EdgewamError
from edgewam.quantize.formats import NONE
from edgewam.quantize.layers import LayerName
from edgewam.quantize.plan import PrecisionPlan, Rule

ERROR_BUDGET = 0.08  # excess error ratio of all layers together at the median frame; the gate is at 0.10, and frames differ
WORST_BUDGET = 0.4  # and at the 99th percentile of frames, whose gate is at 0.5
ROUNDS = 8  # of choosing and, where the choice is a new one, measuring
_NO_ERROR = 1e-3  # of what is allowed: a budget must not grow without end
_MARGIN = 0.95  # of the budget that would just be used up, in the next round
_EQUAL_TIME = 1.05  # formats within 5 % of the fastest are equally fast: timings are no better than that
_MORE_ACCURATE = 0.9  # a slower format must lower the error at least so much to be worth its time
_WEIGHTS_MATTER = 0.002  # of the policy's bytes: below, a layer that is no faster stays float32


@dataclass(frozen=True)
class LayerFacts:
    """What is known of one layer.

    float_ms: one call in float32; calls: per action chunk, with one planner refresh.  float_bytes: of its weight.
    errors, times_ms, packed_bytes: by format.  blocked: why it must stay float32, when it must.
    """

    name: LayerName
    calls: int
    float_ms: float
    float_bytes: int
    errors: Mapping[str, float]
    times_ms: Mapping[str, float]
    packed_bytes: Mapping[str, int] = field(default_factory=dict)
    blocked: str = ""

    def saved_ms(self, kind: str) -> float:
        """Milliseconds per chunk that a format saves; negative when it is slower."""
        return (self.float_ms - self.times_ms[kind]) * self.calls


@dataclass(frozen=True)
class Choice:
    """A layer's format and why."""

    name: LayerName
    format: str
    reason: str

    def to_rule(self) -> Rule:
        """As a rule of a plan."""
        return Rule(*self.name, self.format, self.reason)


class Measured(Protocol):
    """Excess error ratio over frames, as far as it decides."""

    @property
    def median(self) -> float: ...
    @property
    def p99(self) -> float: ...


def search(
    facts: Sequence[LayerFacts], measure: Callable[[Sequence[Choice]], Measured], on_round: Callable[[int], None]
) -> tuple[list[Choice], Measured]:
    """The choices that save most of those whose measured error fits, and that error.

    Args:
        facts: of every layer.
        measure: the error of all choices together.
        on_round: called with the number of rounds done.

    Raises:
        EdgewamError: nothing that was tried fits.
    """
    budget = ERROR_BUDGET
    best: tuple[list[Choice], Measured] | None = None
    seen: dict[tuple[str, ...], Measured] = {}
    fits, exceeds = 0.0, math.inf  # the largest budget that was seen to fit, the smallest that was not
    for turn in range(ROUNDS):
        choices = choose(facts, budget)
        formats = tuple(choice.format for choice in choices)
        if formats not in seen:
            on_round(turn)
            seen[formats] = measure(choices)
        total = seen[formats]
        if best is None or _is_better(choices, total, *best, facts):
            best = choices, total
        if _use(total) > 1:
            exceeds = min(exceeds, budget)
        else:
            fits = max(fits, budget)
        if 0 < fits < exceeds < math.inf:
            budget = math.sqrt(fits * exceeds)
        else:  # frames differ, and single errors add up to less or more than predicted
            budget *= _MARGIN / max(_use(total), _NO_ERROR)
    on_round(ROUNDS)
    assert best is not None, "there is at least one round"
    if _use(best[1]) > 1:
        raise EdgewamError(
            f"No choice of layers stays within an excess error ratio of {ERROR_BUDGET:g} at the median and {WORST_BUDGET:g} at "
            f"the 99th percentile of frames: {best[1].median:.3f} and {best[1].p99:.3f} are the best. Calibrate with more "
            "--episodes, or leave this policy in float32."
        )
    return best


def _use(total: Measured) -> float:
    """The share of what is allowed that an error takes, at the median or at the worst frames."""
    return max(total.median / ERROR_BUDGET, total.p99 / WORST_BUDGET)


def _is_better(
    choices: Sequence[Choice], total: Measured, old: Sequence[Choice], old_total: Measured, facts: Sequence[LayerFacts]
) -> bool:
    if _use(total) > 1:
        return _use(total) < _use(old_total)
    return _use(old_total) > 1 or saved(choices, facts) > saved(old, facts)


def choose(facts: Sequence[LayerFacts], budget: float = ERROR_BUDGET) -> list[Choice]:
    """A format for every layer, such that the predicted error of all together stays within the budget."""
    total_bytes = sum(f.float_bytes for f in facts)
    total_ms = sum(f.float_ms * f.calls for f in facts)
    chosen = {fact.name: _best(fact, total_bytes) for fact in facts}

    def worth(fact: LayerFacts) -> float:
        return _worth(fact, chosen[fact.name].format, total_ms, total_bytes)

    def error(fact: LayerFacts) -> float:
        return fact.errors[chosen[fact.name].format]

    integer = [fact for fact in facts if chosen[fact.name].format != NONE]
    while integer and math.sqrt(sum(error(f) ** 2 for f in integer)) > budget:
        worst = max(integer, key=lambda f: error(f) ** 2 / max(worth(f), 1e-9))
        kind = min(worst.errors, key=lambda k: worst.errors[k])
        if worst.errors[kind] < _MORE_ACCURATE * error(worst) and _is_worth_its_time(worst, kind, total_bytes):
            ratio = worst.float_ms / worst.times_ms[kind]
            reason = f"{ratio:.2f}x as fast, error {worst.errors[kind]:.4f} instead of the faster format's {error(worst):.4f}"
            chosen[worst.name] = Choice(worst.name, kind, reason)
            continue
        reason = f"costs the most accuracy for what it saves: error {error(worst):.4f}"
        integer.remove(worst)
        chosen[worst.name] = Choice(worst.name, NONE, reason)
    return list(chosen.values())


def saved(choices: Sequence[Choice], facts: Sequence[LayerFacts]) -> float:
    """What choices are worth: the share of time plus the share of bytes that they save."""
    total_ms = sum(f.float_ms * f.calls for f in facts)
    total_bytes = sum(f.float_bytes for f in facts)
    pairs = [(c.format, f) for c, f in zip(choices, facts, strict=True) if c.format != NONE]
    return sum(_worth(fact, kind, total_ms, total_bytes) for kind, fact in pairs)


def auto_plan(base: PrecisionPlan, choices: Sequence[Choice]) -> PrecisionPlan:
    """The choices as a plan with one rule per layer; alpha, percentile and backend are those of `base`."""
    return PrecisionPlan("auto", base.backend, tuple(c.to_rule() for c in choices), base.alpha, base.percentile)


def to_json(fact: LayerFacts, choice: Choice, total_ms: float) -> dict[str, Any]:
    """One row of the sensitivity table."""
    return {
        "stage": fact.name[0],
        "layer": fact.name[1],
        "format": choice.format,
        "reason": choice.reason,
        "calls": fact.calls,
        "float32_bytes": fact.float_bytes,
        "packed_bytes": dict(fact.packed_bytes),
        "float32_ms": fact.float_ms,
        "time_share": fact.float_ms * fact.calls / total_ms if total_ms else None,
        "ms": dict(fact.times_ms),
        "error": dict(fact.errors),
    }


def _worth(fact: LayerFacts, kind: str, total_ms: float, total_bytes: int) -> float:
    """Share of the time plus share of the bytes that a format saves.

    Time lost does not count against bytes: near their balance a few microseconds of noise would decide.
    """
    return max(fact.saved_ms(kind), 0.0) / total_ms + (fact.float_bytes - fact.packed_bytes[kind]) / total_bytes


def _is_worth_its_time(fact: LayerFacts, kind: str, total_bytes: int) -> bool:
    return fact.times_ms[kind] < fact.float_ms or fact.float_bytes >= _WEIGHTS_MATTER * total_bytes


def _best(fact: LayerFacts, total_bytes: int) -> Choice:
    if fact.blocked or not fact.errors:
        return Choice(fact.name, NONE, fact.blocked or "no format fits")
    fastest = min(fact.times_ms[kind] for kind in fact.errors)
    equal = [kind for kind in fact.errors if fact.times_ms[kind] <= fastest * _EQUAL_TIME]
    kind = min(equal, key=lambda k: fact.errors[k])
    ratio = fact.float_ms / fact.times_ms[kind]
    error = fact.errors[kind]
    others = ", ".join(f"{k} {fact.times_ms[k] * 1e3:.0f} us error {fact.errors[k]:.4f}" for k in fact.errors if k != kind)
    others = f" (else {others})" if others else ""
    if ratio > 1:
        return Choice(fact.name, kind, f"{ratio:.2f}x as fast, error {error:.4f}{others}")
    share = fact.float_bytes / total_bytes
    if _is_worth_its_time(fact, kind, total_bytes):
        return Choice(fact.name, kind, f"no faster ({ratio:.2f}x) but {share:.1%} of the bytes, error {error:.4f}{others}")
    return Choice(fact.name, NONE, f"no faster ({ratio:.2f}x) and only {share:.1%} of the bytes")

"""The plan `auto`: what is faster and harmless becomes integer, what costs most accuracy for its gain goes first."""

import math
from types import SimpleNamespace

import pytest

from edgewam.core.errors import EdgewamError
from edgewam.quantize.choose import ERROR_BUDGET, ROUNDS, WORST_BUDGET, LayerFacts, auto_plan, choose, search
from edgewam.quantize.plan import PrecisionPlan


def fact(name, error=0.001, ms=0.5, other=None, size=100_000, blocked="", float_ms=1.0):
    errors, times = {"int8": error}, {"int8": ms}
    if other:
        errors["int8_dynamic"], times["int8_dynamic"] = other
    return LayerFacts(("s", name), 2, float_ms, size, errors, times, {kind: size // 4 for kind in errors}, blocked)


def formats(facts, budget=0.08):
    return {choice.name[1]: choice.format for choice in choose(facts, budget)}


def test_a_faster_harmless_layer_becomes_integer_and_a_slower_light_one_does_not():
    found = choose([fact("fast"), fact("slow", ms=1.3, size=100), fact("rest", size=10**6)])
    assert [c.format for c in found] == ["int8", "none", "int8"]
    assert "no faster (0.77x) and only" in found[1].reason and "2.00x as fast" in found[0].reason


def test_a_slower_layer_with_much_weight_becomes_integer():
    found = choose([fact("heavy", ms=1.1, size=10**6), fact("fast")])
    assert found[0].format == "int8" and "of the bytes" in found[0].reason


@pytest.mark.parametrize(
    ("other", "expected"),
    [((0.0005, 0.51), "int8_dynamic"), ((0.0005, 0.9), "int8"), ((0.002, 0.3), "int8_dynamic"), ((0.002, 0.5), "int8")],
)
def test_of_equally_fast_formats_the_more_exact_one_is_taken_else_the_faster(other, expected):
    assert formats([fact("a", other=other)])["a"] == expected


def test_within_the_budget_nothing_is_given_up_beyond_it_the_worst_goes_first():
    facts = [fact("good", 0.01), fact("bad", 0.07), fact("fine", 0.02)]
    assert set(formats(facts).values()) == {"int8"}
    assert formats(facts, budget=0.05) == {"good": "int8", "bad": "none", "fine": "int8"}


def test_beyond_the_budget_a_more_exact_format_is_tried_before_float32():
    facts = [fact("loud", 0.02, ms=0.7, other=(0.06, 0.5)), fact("fine", 0.02)]
    assert formats(facts, budget=0.08) == {"loud": "int8_dynamic", "fine": "int8"}
    assert formats(facts, budget=0.03) == {"loud": "int8", "fine": "int8"}
    slow = [fact("loud", 0.02, ms=1.7, other=(0.06, 0.5), size=100), fact("fine", 0.02)]
    assert formats(slow, budget=0.03) == {"loud": "none", "fine": "int8"}


def test_a_slower_format_is_kept_for_its_bytes_only_where_they_are_worth_its_time():
    heavy, light = (fact(name, 0.09, other=(0.01, 1.2), size=size) for name, size in (("heavy", 10**6), ("light", 1000)))
    assert formats([heavy, light]) == {"heavy": "int8_dynamic", "light": "none"}


def test_a_large_gain_is_worth_more_error_than_a_small_one():
    facts = [fact("useful", 0.05, ms=0.1, size=10**6), fact("useless", 0.04, ms=0.99, size=1000)]
    assert formats(facts, budget=0.055) == {"useful": "int8", "useless": "none"}


@pytest.mark.parametrize("budget", [0.0, 0.01, 0.03, 0.1])
def test_the_predicted_error_never_exceeds_the_budget(budget):
    facts = [fact(str(i), error=0.003 * i) for i in range(1, 12)]
    errors = {f.name: f.errors["int8"] for f in facts}
    assert math.sqrt(sum(errors[c.name] ** 2 for c in choose(facts, budget) if c.format != "none")) <= budget


def test_a_blocked_layer_stays_and_says_why():
    found = choose([fact("edge", blocked="narrow"), fact("x")])
    assert (found[0].format, found[0].reason) == ("none", "narrow")


def test_the_plan_has_one_rule_with_a_reason_per_layer():
    plan = auto_plan(PrecisionPlan("int8", "onnxruntime", (), 0.4, 99.0), choose([fact("a"), fact("b", 0.2)]))
    assert [(r.layer, r.format) for r in plan.rules] == [("a", "int8"), ("b", "none")]
    assert all(rule.reason for rule in plan.rules) and (plan.alpha, plan.percentile) == (0.4, 99.0)


LAYERS = [fact(str(i), error=0.02 * i) for i in range(1, 8)]


def measured(share, tail=1.0):
    """Frames on which the error of the whole is a share of what the single layers predict, and has such a tail."""
    seen = []

    def measure(choices):
        errors = {f.name: f.errors["int8"] for f in LAYERS}
        median = share * math.sqrt(sum(errors[c.name] ** 2 for c in choices if c.format != "none"))
        seen.append(median)
        return SimpleNamespace(median=median, p99=tail * median)

    return measure, seen


def count(choices):
    return sum(choice.format != "none" for choice in choices)


def test_where_frames_are_kinder_than_predicted_more_layers_become_integer():
    kind, cautious = (search(LAYERS, measured(share)[0], lambda turn: None) for share in (0.4, 1.0))
    assert count(kind[0]) > count(cautious[0])
    assert kind[1].median <= ERROR_BUDGET and cautious[1].median <= ERROR_BUDGET


def test_where_they_are_worse_layers_are_given_up_until_it_fits():
    measure, seen = measured(3.0)
    _, total = search(LAYERS, measure, lambda turn: None)
    assert seen[0] > ERROR_BUDGET >= total.median


def test_the_worst_frames_count_too():
    measure, _ = measured(1.0, tail=20.0)
    choices, total = search(LAYERS, measure, lambda turn: None)
    assert total.p99 <= WORST_BUDGET and total.median < 0.5 * ERROR_BUDGET
    assert count(choices) < count(search(LAYERS, measured(1.0)[0], lambda turn: None)[0])


def test_everything_integer_ends_the_search():
    measure, seen = measured(0.001)
    rounds = []
    choices, _ = search(LAYERS, measure, rounds.append)
    assert count(choices) == len(LAYERS) and len(seen) <= 2 and rounds == [*range(len(seen)), ROUNDS]


def test_an_error_that_never_fits_is_refused_with_what_to_do():
    def measure(choices):
        return SimpleNamespace(median=0.3, p99=0.9)

    with pytest.raises(EdgewamError, match=r"0\.300 and 0\.900 are the best"):
        search(LAYERS, measure, lambda turn: None)

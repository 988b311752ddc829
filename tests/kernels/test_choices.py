"""Choices of variants: they come back from JSON, belong to one card, and never choose what an op does not offer."""

import json
from dataclasses import replace

import pytest
import torch

from edgewam.core.errors import ArtifactError
from edgewam.kernels.call import Call
from edgewam.kernels.choices import Choices, key_of
from edgewam.kernels.target import TARGETS
from edgewam.kernels.variant import Variant

FAST, OTHER = Variant(16, 64, 128, splits=4, dependent=True), Variant(16, 32, 64)
CARD = TARGETS[90]


def made(**by_key):
    return replace(Choices.defaults(CARD), by_key=by_key)


def test_choices_survive_json():
    choices = replace(made(a=FAST, b=None), remarks=("b: the process ended with -6",))
    assert Choices.from_json(json.loads(json.dumps(choices.to_json()))) == choices


def test_the_choices_of_another_card_are_refused_with_what_to_do():
    choices = made(a=FAST)
    assert choices.for_target(CARD) is choices
    for other in (TARGETS[120], replace(CARD, name="another card")):
        with pytest.raises(
            ArtifactError, match=r"tuned on 'sm_90' \(sm_90\) and this is .*Compile the policy again on this machine"
        ):
            choices.for_target(other)


def test_another_triton_is_said():
    with pytest.warns(UserWarning, match="tuned with Triton 1.2.3 and run with"):
        replace(made(), triton="1.2.3").for_target(CARD)


def test_a_variant_is_picked_only_when_the_op_offers_it():
    choices = made(a=FAST, wrong=None)
    assert choices.pick("a", (OTHER, FAST)) == FAST
    assert choices.pick("a", (OTHER,)) == OTHER
    assert choices.pick("never tuned", (OTHER, FAST)) == OTHER
    assert choices.pick("wrong", (OTHER, FAST)) is None


def test_the_key_is_what_decides_the_time_and_not_the_names():
    x, wide = torch.empty(4, 8), torch.empty(4, 16)
    call = Call("linear", {"x": "h.3", "y": "q"}, {"norm": True})
    key = key_of(call, {"x": x, "y": x})
    assert key == key_of(Call("linear", {"y": "b", "x": "a"}, {"norm": True}), {"x": x.clone(), "y": x})
    others = [
        key_of(call, {"x": wide, "y": x}),
        key_of(call, {"x": x.half(), "y": x}),
        key_of(Call("linear", call.operands, {"norm": False}), {"x": x, "y": x}),
        key_of(Call("other", call.operands, call.attributes), {"x": x, "y": x}),
    ]
    assert len({key, *others}) == 5


@pytest.mark.parametrize("change", [{"by_key": {"a": {"rows": 1}}}, {"by_key": None}, {"card": ...}])
def test_damaged_choices_are_refused(change):
    data = {**made(a=FAST).to_json(), **change}
    data = {name: value for name, value in data.items() if value is not ...}
    with pytest.raises(ArtifactError, match="Compile the policy again"):
        Choices.from_json(data)

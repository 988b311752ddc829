"""Tuning: the fastest right variant wins, a wrong one never does, and one that ends its process costs nothing but itself."""

from dataclasses import replace

import pytest

from edgewam.core.errors import PluginError
from edgewam.core.tensor_spec import TensorSpec
from edgewam.kernels.autotune import Child, ChildDied, distinct, tune
from edgewam.kernels.call import PROGRAM, Call, Recipe
from edgewam.kernels.choices import Choices
from edgewam.kernels.target import INTERPRETER, TARGETS
from edgewam.kernels.trial import WRONG
from edgewam.kernels.variant import Variant
from tests.kernels import doubling

OP = "tests.kernels.doubling"
CARD = TARGETS[90]
SPECS = {name: TensorSpec(name, (3, 4)) for name in "xyz"} | {"half": TensorSpec("half", (3, 4), "float16")}
RECIPE = Recipe(
    {"h": TensorSpec("h", (3, 4))},
    {},
    (
        Call(OP, {"x": "x", "y": "h"}), Call(PROGRAM, {"in0": "h", "out0": "z"}, {"file": "a"}), Call(OP, {"x": "h", "y": "y"}),
        Call("no_kernel_of_this", {"x": "x", "y": "y"}), Call(OP, {"x": "half", "y": "z"}),
    ),
)  # fmt: skip


class Timer:
    """Answers from a list of outcomes by `splits`, as milliseconds, a deviation, or a death; shared by all its children."""

    def __init__(self, outcomes):
        self.outcomes, self.opened, self.asked, self.open = outcomes, 0, [], 0

    def __call__(self):
        self.opened += 1
        self.open += 1
        return self

    def ask(self, question):
        if "compile" in question:
            return {}
        self.asked.append(question)
        if "variant" not in question:
            if question["operands"]["x"]["dtype"] == "float16":
                return {"why": "no halves", "variants": []}
            return {"why": "", "variants": [Variant(1, 1, 1, splits=number).to_json() for number in self.outcomes]}
        outcome = self.outcomes[question["variant"]["splits"]]
        if outcome == "dies":
            self.open -= 1
            raise ChildDied("the process ended with -6")
        return outcome

    def close(self):
        self.open -= 1


def tuned(timer, **options):
    return tune(RECIPE, SPECS, CARD, open_child=timer, **options)


def test_calls_of_one_key_are_tuned_once_and_pieces_never():
    timer = Timer({1: {"ms": 1.0}})
    tuned(timer)
    assert len(distinct(RECIPE, SPECS)) == 2, "twice the same doubling, once of halves; no piece, no op without a kernel"
    assert len(timer.asked) == 3 and timer.opened == 1 and timer.open == 0


def test_the_fastest_right_variant_is_chosen():
    said = []
    timer = Timer({1: {"ms": 1.0}, 2: {"wrong_by": 0.5}, 3: {"ms": 0.25}, 4: {"failed": "OutOfResources: 300 kB"}})
    choices = tuned(timer, report=lambda done, total, text: said.append((done, total, text)))
    assert [variant.splits for variant in choices.by_key.values()] == [3]
    assert (choices.card, choices.sm) == (CARD.name, 90)
    assert len(choices.remarks) == 2 and "wrong by 0.5" in choices.remarks[0] and "300 kB" in choices.remarks[1]
    assert [(done, total) for done, total, _ in said] == [(1, 2), (2, 2)]
    assert "250.0 us" in said[0][2] and "not tuned, no halves" in said[1][2]


def test_a_process_that_dies_loses_its_candidate_and_is_started_again():
    timer = Timer({1: "dies", 2: {"ms": 1.0}, 3: "dies", 4: {"ms": 0.5}})
    choices = tuned(timer)
    assert [variant.splits for variant in choices.by_key.values()] == [4]
    assert timer.opened == 3 and timer.open == 0
    assert [remark.endswith("ended with -6") for remark in choices.remarks] == [True, True]


def test_where_no_variant_is_right_the_reference_is_chosen():
    choices = tuned(Timer({1: {"wrong_by": 0.5}, 2: "dies"}))
    assert list(choices.by_key.values()) == [None]


def test_a_machine_where_nothing_can_be_tried_is_an_error():
    class Dead(Timer):
        def ask(self, question):
            raise ChildDied("the process ended with 1: no CUDA driver")

    with pytest.raises(PluginError, match="cannot be tried here: the process ended with 1: no CUDA driver"):
        tuned(Dead({}))


def test_tuning_ends_in_time_and_says_what_it_left():
    choices = tuned(Timer({1: {"ms": 1.0}}), limit_s=-1.0)
    assert not choices.by_key and choices.remarks == ("2 of 2 kernels were not tuned within -1 s",)


def test_in_the_interpreter_the_defaults_are_taken():
    timer = Timer({})
    assert tune(RECIPE, SPECS, INTERPRETER, open_child=timer) == Choices.defaults(INTERPRETER) and not timer.opened


def test_a_real_process_finds_the_right_one_between_wrong_dying_and_failing_ones():
    pytest.importorskip("triton", reason="needs edgewam[kernels]")
    call = Call(OP, {"x": "x", "y": "y"}, {"offered": "WRONG+SLOW+ENDS+RAISES+RIGHT"})
    card = replace(INTERPRETER, name="a card", interpreted=False)
    choices = tune(Recipe({}, {}, (call,)), SPECS, card, device="cpu", open_child=Child)
    assert list(choices.by_key.values()) == [doubling.RIGHT]
    wrong, ended, raised = choices.remarks
    assert float(wrong.split("wrong by ")[1].split()[0]) > WRONG
    assert "the process ended with -6" in ended and "ValueError: this variant needs more than there is" in raised

"""A bound recipe: kernels where they take a call, the reference where they do not and why, pieces as programs, fixed memory."""

from dataclasses import replace

import pytest
import torch

from edgewam.core.errors import ArtifactError, ContractError
from edgewam.core.tensor_spec import TensorSpec
from edgewam.kernels.bound import WRONG_HERE, bind_recipe, split
from edgewam.kernels.call import PROGRAM, Call, Recipe, View
from edgewam.kernels.choices import Choices, key_of
from edgewam.kernels.target import INTERPRETER, TARGETS
from tests.kernels import doubling

OP = "tests.kernels.doubling"


def recipe(*calls, views=None):
    return Recipe({"h": TensorSpec("h", (3, 4))}, views or {}, calls)


def tensors(dtype=torch.float32):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    return {"x": x.to(dtype), "h": torch.zeros(3, 4), "y": torch.zeros(3, 4)}


def bound(recipe, tensors, choices=None, **programs):
    return bind_recipe(recipe, tensors, INTERPRETER, choices or Choices.defaults(INTERPRETER), programs)


TWICE = recipe(Call(OP, {"x": "x", "y": "h"}), Call(OP, {"x": "h", "y": "y"}))


def test_calls_run_in_their_order_in_the_memory_they_were_bound_to():
    memory = tensors()
    run = bound(TWICE, memory)
    assert not memory["y"].any() and not run.unsupported and [call.variant for call in run.calls] == [doubling.RIGHT] * 2
    run()
    assert torch.equal(memory["y"], 4 * memory["x"])
    memory["x"].neg_()
    run()
    assert torch.equal(memory["y"], 4 * memory["x"])


def test_what_a_kernel_does_not_take_runs_as_its_reference_and_says_why():
    memory = tensors(torch.float16)
    run = bound(TWICE, memory)
    assert run.unsupported == ((0, OP, "it doubles float32 only"),)
    assert [call.variant for call in run.calls] == [None, doubling.RIGHT]
    run()
    assert torch.equal(memory["y"], 4 * memory["x"].float())


def test_the_reference_rounds_to_the_operand_that_it_writes():
    memory = {"x": torch.randn(2, 64), "w": torch.randn(64, 64), "y": torch.zeros(2, 64, dtype=torch.float16)}
    call = Call("linear", {"x": "x", "weight": "w", "y": "y"}, {"activation": "no such"})
    reads, writes = split(call, {role: memory[name] for role, name in call.operands.items()})
    assert set(reads) == {"x", "weight"} and set(writes) == {"y"}
    memory = tensors(torch.float16)
    memory["y"] = torch.zeros(3, 4, dtype=torch.float16)
    bound(recipe(Call(OP, {"x": "x", "y": "y"})), memory)()
    assert memory["y"].dtype == torch.float16 and torch.equal(memory["y"], 2 * memory["x"])


def test_a_kernel_that_was_wrong_on_this_card_is_not_used():
    memory = tensors()
    call = TWICE.calls[0]
    key = key_of(call, {"x": memory["x"], "y": memory["h"]})
    run = bound(TWICE, memory, replace(Choices.defaults(INTERPRETER), by_key={key: None}))
    assert [why for _, _, why in run.unsupported] == [WRONG_HERE] * 2, "both calls have one key"
    run()
    assert torch.equal(memory["y"], 4 * memory["x"])


def test_the_chosen_variant_is_the_one_that_runs():
    memory = tensors()
    call = Call(OP, {"x": "x", "y": "y"}, {"offered": "RIGHT+WRONG"})
    key = key_of(call, memory)
    run = bound(recipe(call), memory, replace(Choices.defaults(INTERPRETER), by_key={key: doubling.WRONG}))
    run()
    assert torch.equal(memory["y"], 3 * memory["x"])


def test_choices_of_another_card_are_refused_before_anything_is_bound():
    with pytest.raises(ArtifactError, match="Compile the policy again on this machine"):
        bound(TWICE, tensors(), Choices.defaults(TARGETS[90]))


def test_pieces_run_as_programs():
    memory = tensors()
    call = Call(PROGRAM, {"in0": "x", "in1": "h", "out0": "y"}, {"file": "piece.pt2"})
    run = bound(recipe(call), memory, **{"piece.pt2": lambda a, b: (a + 1 + b,)})
    assert not run.unsupported
    run()
    assert torch.equal(memory["y"], memory["x"] + 1)
    with pytest.raises(ContractError, match=r"'piece\.pt2' of this stage is not there\. It has: none"):
        bound(recipe(call), memory)


def test_views_share_the_memory():
    memory = tensors()
    views = {"row": View("x", (1,), (1, 4)), "out": View("y", ((2, 3),))}
    bound(recipe(Call(OP, {"x": "row", "y": "out"}), views=views), memory)()
    assert torch.equal(memory["y"][2], 2 * memory["x"][1]) and not memory["y"][:2].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (Call(OP, {"x": "x", "z": "y"}), "writes 'z', and the op gives y"),
        (Call("sum_of_all", {"x": "x", "y": "y"}), "There is no op 'sum_of_all'. Available: linear"),
        (Call(OP, {"x": "nowhere", "y": "y"}), "'nowhere', which is nowhere"),
    ],
)
def test_what_does_not_exist_is_refused(call, message):
    with pytest.raises(ContractError, match=message):
        bound(recipe(call), tensors(torch.float16))()

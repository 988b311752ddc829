"""The full-size policy as recipes, on the meta device: how many kernels, and that they read exactly the weights there are."""

import ast
from itertools import pairwise
from pathlib import Path

import pytest

from edgewam.compile.fused import lower
from edgewam.core import plugins
from edgewam.kernels import sources
from edgewam.kernels.bound import on_meta, split, without_kernel
from edgewam.kernels.call import PROGRAM
from edgewam.kernels.choices import Choices
from edgewam.kernels.target import TARGETS
from tests.compile.test_rewrites_full_size import rewritten

LOWERED = ("planner", "router", "state", "denoise")
FLOAT32_CONSTANTS = 0.002  # biases, gains and norms are float32 in a recipe and bfloat16 in the stage


@pytest.fixture(scope="module")
def stages():
    return rewritten()


@pytest.fixture(scope="module")
def recipes(stages):
    return {name: lower(stages[name]) for name in LOWERED}


def in_bytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_a_step_is_eight_kernels_for_each_of_30_layers(recipes):
    assert len(recipes["denoise"].recipe.calls) == 30 * 8 + 2
    assert not any(call.op == PROGRAM for call in recipes["denoise"].recipe.calls)


def test_a_refresh_is_eight_kernels_a_layer_and_ends_with_the_last_keys_and_values(recipes):
    calls = recipes["planner"].recipe.calls
    assert len(calls) == 2 + 29 * 8 + 2
    assert calls[-1].op == "context_write" and calls[-1].operands["context"] == "context[29]"


def read_early():
    """Op -> roles that its Triton kernel loads before it waits for the kernel in front (`edgewam/kernels/launch.py`)."""
    found = {}
    for path in Path(sources.__file__).parent.glob("*.py"):
        for kernel in ast.parse(path.read_text()).body:
            names = {argument.arg for argument in kernel.args.args} if isinstance(kernel, ast.FunctionDef) else ()
            if "DEPENDENT" not in names:
                continue
            end = next(node.lineno for node in ast.walk(kernel) if isinstance(node, ast.Attribute) and node.attr == "gdc_wait")
            early = [node for node in ast.walk(kernel) if isinstance(node, ast.Call) and node.lineno < end]
            used = {
                node.id for call in early for argument in call.args for node in ast.walk(argument) if isinstance(node, ast.Name)
            }
            found[kernel.name] = {name for name in used & names if name.islower()}
    return found


EARLY = read_early()


def test_only_weights_and_ready_keys_are_read_early():
    assert {op: roles for op, roles in EARLY.items() if roles} == {
        "linear": {"weight"}, "chunk_attention": {"routed"}, "text_attention": {"kv", "bias"},
    }  # fmt: skip
    assert set(EARLY) == {*plugins.names("kernel"), "prepare"}


@pytest.mark.parametrize("name", LOWERED)
def test_nothing_is_read_early_that_the_kernel_in_front_writes(stages, recipes, name):
    recipe = recipes[name].recipe
    tensors = on_meta(recipe, recipes[name].specs(stages[name]))

    def bases(names):
        return {recipe.views[key].of if key in recipe.views else key for key in names}

    for before, call in pairwise(recipe.calls):
        written = () if before.op == PROGRAM else split(before, {role: tensors[key] for role, key in before.operands.items()})[1]
        early = bases(key for role, key in call.operands.items() if role in EARLY.get(call.op, ()))
        assert not early & bases(before.operands[role] for role in written), (before, call)


@pytest.mark.parametrize("name", LOWERED)
def test_every_call_has_a_kernel_on_every_target(stages, recipes, name):
    for target in TARGETS.values():
        assert without_kernel(recipes[name].recipe, recipes[name].specs(stages[name]), target, Choices.defaults(target)) == []


def test_the_router_is_seven_kernels_behind_its_visual_tokens(recipes):
    assert [call.op for call in recipes["router"].recipe.calls].count("linear") == 6
    assert len(recipes["router"].recipe.calls) == 8


@pytest.mark.parametrize("name", LOWERED)
def test_a_recipe_reads_every_matrix_once_and_allocates_nothing(stages, recipes, name):
    lowered = recipes[name]
    assert all(weight.is_meta for weight in lowered.weights.values())
    pieces = [p for piece in lowered.pieces.values() for p in piece.stage.function.parameters()]
    found = [w for key, w in lowered.weights.items() if key.endswith("weight") and w.dim() > 1]
    named = stages[name].function.named_parameters()  # biases of layers that are batched are stacks too
    expected = [p for key, p in named if p.dim() > 1 and not key.endswith("bias")]
    extra = [p for p in pieces if p.dim() > 1]
    assert in_bytes([*found, *extra]) == in_bytes(expected)
    total = in_bytes([*lowered.weights.values(), *pieces])
    assert total == pytest.approx(stages[name].cost.weight_bytes, rel=FLOAT32_CONSTANTS)
    read = {
        lowered.recipe.views[n].of if n in lowered.recipe.views else n for c in lowered.recipe.calls for n in c.operands.values()
    }
    assert set(lowered.weights) <= read

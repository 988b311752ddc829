"""Exact rewrites change no result: in float64 to the last digits, in float32 to rounding, and on the released actions."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewam.compile.rewrites import LAYERWISE, REWRITES, RewriteRefused, refusals, rewrite
from edgewam.core.errors import EdgewamError
from edgewam.models import aha_wam, toy_three
from edgewam.quantize.layers import Scales, quantized, with_layers
from tests.compile.rewritten import as_float64, deviation, in_float64, lively_model, stages_of, walk
from tests.contracts.test_family import ACTIONS, Case, act_on_golden, planned_robot
from tests.models import aha_wam_golden as golden

FLOAT64 = 1e-13  # of an output's maximum: up to 7e-16 was seen; a wrong fold is off by more than 1e-3
CHANGING = [name for name, row in REWRITES.items() if row.function is not None]


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return lively_model()


@pytest.fixture(scope="module")
def plain(model):
    return stages_of(model)


@pytest.fixture(scope="module")
def expected(plain):
    return walk(plain)


@pytest.mark.parametrize("names", [[name] for name in CHANGING] + [CHANGING], ids=[*CHANGING, "all"])
def test_a_rewrite_is_exact_in_float64(plain, names):
    with in_float64():
        wide = as_float64(plain)
        assert deviation(walk(rewrite(wide, names), torch.float64), walk(wide, torch.float64)) < FLOAT64


@pytest.mark.parametrize("name", CHANGING)
def test_a_rewrite_stays_within_its_tolerance_in_float32(plain, expected, name):
    row, changed = REWRITES[name], rewrite(plain, [name])
    found = deviation(walk(changed), expected)
    assert found == 0 if row.kind == "bitwise" else found <= row.tolerance
    assert {stage for stage in plain if changed[stage].function is not plain[stage].function} == set(row.stages)


def test_all_rewrites_together_keep_names_inputs_and_outputs_and_cost_less(plain, expected):
    changed = rewrite(plain)
    assert refusals(plain) == {}
    assert list(changed) == list(plain)
    assert all((changed[n].inputs, changed[n].outputs) == (plain[n].inputs, plain[n].outputs) for n in plain)
    assert all(changed[n].cost.flops <= plain[n].cost.flops for n in plain)
    assert sum(s.cost.weight_bytes for s in changed.values()) < sum(s.cost.weight_bytes for s in plain.values())
    assert 0 < deviation(walk(changed), expected) <= max(row.tolerance for row in REWRITES.values())


def test_rewriting_leaves_the_given_stages_and_the_model_as_they_were(model, plain, expected):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rewrite(plain)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert deviation(walk(plain), expected) == 0


@pytest.mark.parametrize("steps", golden.indices("sampler_streaming", r"steps(\d+)\."))
def test_rewritten_programs_give_the_released_actions(steps):
    net = golden.model().requires_grad_(False)
    bucket = golden.config().text_len
    built = rewrite(stages_of(net, bucket))
    case = Case(built, lambda n: aha_wam.programs(net, n, text_bucket=bucket))
    data, robot = golden.arrays("sampler_streaming"), planned_robot(case, steps)
    for chunk in golden.indices("sampler_streaming", rf"steps{steps}\.chunk(\d+)\."):
        normalised = (act_on_golden(robot, chunk) - ACTIONS.mean) / ACTIONS.std
        wanted = data[f"steps{steps}.chunk{chunk}.actions_normalized"].numpy()
        np.testing.assert_allclose(normalised, wanted, atol=golden.SAMPLER_ATOL, rtol=0)


def test_no_name_changes_nothing(plain):
    assert rewrite(plain, ()) == plain and rewrite(plain, ())["router"].function is plain["router"].function


def test_an_unknown_name_and_one_that_is_held_already_list_the_known_ones(plain):
    for name in ("fold_everything", "text_once"):
        with pytest.raises(EdgewamError, match=f"'{name}'.*" + ", ".join(CHANGING)):
            rewrite(plain, [name])


@pytest.mark.parametrize("name", CHANGING)
def test_a_rewrite_is_refused_the_second_time(plain, name):
    with pytest.raises(RewriteRefused, match=f"'{name}'.*already"):
        rewrite(rewrite(plain, [name]), [name])


def test_another_family_is_refused_by_name_and_left_alone_otherwise():
    other = toy_three.stages(toy_three.build())
    assert all(rewrite(other)[name].function is stage.function for name, stage in other.items())
    assert set(refusals(other)) == set(CHANGING)
    with pytest.raises(RewriteRefused, match="there is no stage 'router'"):
        rewrite(other, ["fold_delta"])


def test_a_quantised_stage_is_left_alone_while_the_others_are_rewritten(plain):
    path = "qkv.0.project"
    layer = quantized(plain["denoise"].function.get_submodule(path), Scales("int8_dynamic"))
    mixed = with_layers(plain, {("denoise", path): layer})
    with pytest.raises(RewriteRefused, match=re.escape(f"'{path}'") + ".*rewrite first"):
        rewrite(mixed, ["fold_cross_norms"])
    changed = rewrite(mixed)
    assert changed["denoise"].function is mixed["denoise"].function
    assert changed["router"].function is not mixed["router"].function
    assert set(refusals(mixed)) == {name for name in CHANGING if "denoise" in REWRITES[name].stages}


def test_a_stage_of_another_class_is_refused_with_its_class(plain):
    strange = {**plain, "router": replace(plain["router"], function=lambda *inputs: inputs)}
    with pytest.raises(RewriteRefused, match="'router' is a function; this rewrite knows RouterStage"):
        rewrite(strange, ["fold_delta"])


def test_dividing_logits_is_refused_where_it_saves_nothing_or_overflows(model, plain):
    wide = stages_of(model, bucket=golden.config().head_dim)
    with pytest.raises(RewriteRefused, match="saves nothing"):
        rewrite(wide, ["scale_cross_logits"])
    half = stages_of(lively_model().half())
    with pytest.raises(RewriteRefused, match="float16"):
        rewrite(half, ["scale_cross_logits"])


def test_what_a_quantiser_names_stays_a_linear_layer(plain):
    assert set(CHANGING) - set(LAYERWISE) == {"batch_editor", "scale_cross_logits"}
    unbatched = rewrite(plain, LAYERWISE)
    layers = {p for p, m in unbatched["router"].function.named_modules() if isinstance(m, torch.nn.Linear)}
    deltas = {f"edit.delta_proj.{i}.{j}" for i in range(golden.config().num_layers) for j in (1, 3)}
    pool = {"pool.value.1", "pool.after"}
    assert layers == {"visual.1", "visual.3", "pooled.1", "pooled.3", "ask.project", *pool, *deltas}


def test_every_item_of_the_list_has_a_rewrite():
    items = (
        "text K/V once per prompt", "padded rows collapsed to one weighted key", "AdaLN/time tables per schedule",
        "single-image VAE as 2-D convolutions", "editor layers batched, query projections merged", "observation-key fold",
        "value-linear commute", "RMSNorm scalars and gammas folded", "merged QKV", "no masks where all is attended",
        "planner work after the last K/V dropped",
    )  # fmt: skip
    assert set(items) <= {row.item for row in REWRITES.values()}


def test_the_table_and_its_document_say_what_is_exact_and_why():
    document = (Path(__file__).parents[2] / "docs" / "numerics.md").read_text()
    for name, row in REWRITES.items():
        assert row.name == name and row.why and row.reason and row.stages
        held = "held: " if row.function is None else ""
        assert f"| {held}`{name}` | {row.kind} |" in document
        assert (row.kind == "bitwise") == (row.tolerance == 0)

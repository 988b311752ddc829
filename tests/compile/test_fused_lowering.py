"""Lowered stages compute what the stages compute: to the last digits of float64 with the references of the ops alone."""

import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

from edgewam.compile.fused import NotLowered, lower
from edgewam.compile.layer_groups import in_layer_groups
from edgewam.compile.rewrites import NOT_LAYERWISE, rewrite, rewrite_fitting
from edgewam.core.errors import EdgewamError
from edgewam.kernels.call import PROGRAM
from edgewam.models import aha_wam
from edgewam.models.stage_layers import FeedForward
from edgewam.quantize.layers import Scales, copied, find_layers, quantized, with_layers
from edgewam.quantize.steps import with_scale_rows
from tests.compile.lowered import BUCKET, drawn, eagerly, largest_deviation, run_lowered, small_model, stages_of
from tests.compile.rewritten import as_float64, in_float64
from tests.compile.rewritten import stages_of as golden_stages
from tests.models import aha_wam_golden as golden

FLOAT64 = 1e-12  # of an output's maximum: up to 1e-14 was seen; any wrong operand is off by more than 1e-3
FLOAT32 = 5e-6  # the same sums in another order, a hundred terms
BFLOAT16 = 3e-2  # 8 bits: eager rounds between any two operators, a fused kernel only what it stores
LOWERED = {"aha_wam": {"planner", "router", "state", "denoise"}, "fast_wam": {"planner", "state", "denoise"}}
GROUP = 8  # inputs that share a scale of four-bit weights: divides every width of these stages
REWRITTEN = {"all": (), "layerwise": NOT_LAYERWISE, "none": ()}  # which are left out


@pytest.fixture(scope="module", params=["aha_wam", "fast_wam"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def plain(family):
    return rewritten(family, "none")


@functools.cache
def rewritten(family, which):
    """The stages of a family with some of its rewrites; nobody changes them."""
    stages = stages_of(small_model(family))
    return dict(stages) if which == "none" else rewrite_fitting(stages, REWRITTEN[which])[0]


def lowered_stages(stages):
    """Stage -> recipe of all that can be lowered, and stage -> reason of the others."""
    found, refused = {}, {}
    for name, stage in stages.items():
        try:
            found[name] = lower(stage)
        except NotLowered as reason:
            refused[name] = str(reason)
    return found, refused


@pytest.mark.parametrize("which", REWRITTEN)
def test_a_lowered_stage_is_the_stage_in_float64(family, which):
    changed = rewritten(family, which)
    with in_float64():
        stages = as_float64(changed)
        found, refused = lowered_stages(stages)
        wanted = LOWERED[family] - ({"router"} if which == "none" else set())
        assert set(found) == wanted and set(refused) == set(stages) - wanted
        for name, recipe in found.items():
            inputs = drawn(stages[name])
            expected = eagerly(stages[name], inputs)
            assert largest_deviation(run_lowered(recipe, stages[name], inputs), expected) < FLOAT64, name


def test_a_recipe_survives_json(family):
    stages = rewritten(family, "all")
    for name, recipe in lowered_stages(stages)[0].items():
        inputs = drawn(stages[name], seed=1)
        first, second = (run_lowered(recipe, stages[name], inputs, through_json) for through_json in (False, True))
        assert all(torch.equal(first[output], second[output]) for output in first)
        assert largest_deviation(first, eagerly(stages[name], inputs)) < FLOAT32


def test_groups_of_planner_layers_fill_the_context_of_the_whole_planner():
    model = small_model("aha_wam", num_layers=3)
    stages = stages_of(model)
    groups, _ = in_layer_groups(stages, aha_wam.programs(model, 2, text_bucket=BUCKET), 3)
    inputs = drawn(stages["planner"])
    expected, hidden, parts = eagerly(stages["planner"], inputs)["context"], None, []
    for name in ("planner_0_1", "planner_1_2", "planner_2_3"):
        stage = groups[name]
        given = {**inputs, "hidden": hidden}
        found = run_lowered(lower(stage), stage, {spec.name: given[spec.name] for spec in stage.inputs})
        hidden = found.get("hidden_next")
        parts.append(found["context"])
    assert largest_deviation({"context": torch.cat(parts)}, {"context": expected}) < FLOAT32


def test_a_bfloat16_stage_keeps_its_residual_stream_in_float32_and_gives_the_reference(family):
    stages = rewrite(stages_of(small_model(family), torch.bfloat16))
    for name, recipe in lowered_stages(stages)[0].items():
        matrices = {w.dtype for key, w in recipe.weights.items() if key.endswith("weight") and w.dim() > 1}
        assert matrices == {torch.bfloat16}, name
        assert {s.dtype for s in recipe.recipe.workspaces.values()} <= {"bfloat16", "float32"}
        inputs = drawn(stages[name])
        assert largest_deviation(run_lowered(recipe, stages[name], inputs), eagerly(stages[name], inputs)) < BFLOAT16, name
    assert lower(stages["denoise"]).recipe.workspaces["h"].dtype == "float32"


def test_a_denoise_layer_is_eight_kernels_and_a_step_two_more(family):
    calls = [call.op for call in lower(rewritten(family, "all")["denoise"]).recipe.calls]
    layer = ["linear", "chunk_attention", "linear", "linear", "text_attention", "linear", "linear", "linear"]
    assert calls == ["linear", *layer, *layer, "linear"]


def test_the_router_asks_all_layers_at_once_and_edits_them_in_two_products():
    recipe = lower(rewritten("aha_wam", "all")["router"]).recipe
    assert [call.op for call in recipe.calls] == [PROGRAM, *["linear"] * 4, "router_attention", "linear", "linear"]
    *_, up, down = recipe.calls
    # the router's own norms and GELUs are not those of the blocks
    assert up.attributes == {"norm": True, "eps": 1e-5, "activation": "gelu_exact"}
    assert down.attributes == {"pairs": True} and down.operands["residual"] == "context" and down.operands["y"] == "routed"


def test_what_is_not_lowered_says_why(family, plain):
    refused = lowered_stages(rewritten(family, "all"))[1]
    assert "convolutions" in refused["image_encoder"] and "once per instruction" in refused["text"]
    unfolded = lowered_stages(plain)[1]
    assert "router" not in plain or "exact rewrites" in unfolded["router"]


def test_a_width_that_sums_of_squares_do_not_divide_is_not_lowered():
    found, refused = lowered_stages(golden_stages(golden.model().requires_grad_(False)))
    assert not found and all("60 wide" in refused[name] for name in ("planner", "state", "denoise"))


class OtherFeedForward(FeedForward):
    """A form that the lowering was not written for."""

    def forward(self, x):
        """x [S, D] -> update [S, D]."""
        return super().forward(x).relu()


def test_a_layer_of_another_form_is_not_lowered(plain):
    module = copied(plain["denoise"].function)
    module.ffn[1].__class__ = OtherFeedForward
    with pytest.raises(NotLowered, match=r"'ffn\.1' is a OtherFeedForward"):
        lower(replace(plain["denoise"], function=module))
    module = copied(plain["denoise"].function)
    module.out[0] = nn.Sequential(module.out[0])
    with pytest.raises(NotLowered, match=r"'out\.0' is a Sequential"):
        lower(replace(plain["denoise"], function=module))


def test_a_weight_that_is_not_finite_is_named(plain):
    module = copied(plain["denoise"].function)
    weight = module.out[1].weight.clone()
    weight[3, 5] = torch.nan
    module.out[1].weight = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(EdgewamError, match=r"denoise\.out\.1\.weight.*\[3, 5\]"):
        lower(replace(plain["denoise"], function=module))


def with_formats(stages, name, kinds):
    """The stages with every wide linear layer of one quantised, formats in turn."""
    generator = torch.Generator().manual_seed(3)
    made = {}
    for number, (key, layer) in enumerate(find_layers({name: stages[name]}).items()):
        kind, steps = kinds[number % len(kinds)]
        if layer.in_features < 16 or layer.out_features < 16 or not isinstance(layer, nn.Linear):
            continue
        smooth = 0.5 + torch.rand(layer.in_features, generator=generator)
        if kind in ("int8", "fp8"):
            scale = (0.02 + 0.03 * torch.rand(steps or 1, generator=generator)) if steps else torch.tensor(0.03)
            made[key] = quantized(layer, Scales(kind, input_scale=scale, smooth=None if steps else smooth))
        else:
            made[key] = quantized(layer, Scales(kind, smooth=smooth, group=GROUP))
    return with_scale_rows(with_layers(stages, made)), made


@pytest.mark.parametrize("name", ["denoise", "planner", "router"])
def test_quantised_layers_round_as_the_quantised_stage_does(name):
    steps = 3 if name == "denoise" else None
    changed = rewritten("aha_wam", "layerwise")
    with in_float64():
        stages = as_float64(changed)
        mixed, made = with_formats(
            stages, name, [("int8", None), ("fp8", steps), ("int4_weights", None), ("fp8_weights", None), ("int8_weights", None)]
        )
        stage = mixed[name]
        assert len(made) > 5 and (steps is None) == (stage.inputs[-1].name != "scale_row")
        lowered, inputs = lower(stage), drawn(stage)
        assert largest_deviation(run_lowered(lowered, stage, inputs), eagerly(stage, inputs)) < FLOAT64
        codes = {w.dtype for key, w in lowered.weights.items() if key.endswith("codes")}
        assert codes == {torch.int8, torch.float8_e4m3fn, torch.uint8}  # four bits are two a byte
        assert not any(isinstance(part, nn.Linear) for p in lowered.pieces.values() for part in p.stage.function.modules())


def test_activations_that_are_measured_in_every_call_are_not_lowered(plain):
    mixed, _ = with_formats(plain, "denoise", [("int8_dynamic", None)])
    with pytest.raises(NotLowered, match="measured in every call"):
        lower(mixed["denoise"])

"""The full size: the stored costs are those of the stages, and give the published floors of facts/performance.md 4.4."""

from dataclasses import replace

import pytest

from edgewam.core.stage import Cost
from edgewam.profiles.device import load_device
from edgewam.profiles.model_costs import MODELS, ModelCosts, read_model
from edgewam.profiles.plan_costs import named
from edgewam.profiles.roofline import roofline
from edgewam.recipes.roofline import floors
from tests.profiles.test_roofline import PUBLISHED

# The facts are rounded to two digits, and count 32 text keys where a bundle has 48 and its padding (8 MB a denoise step), no
# text keys and values read and written beside the state (36 MB a chunk), and observation encoder and editor apart.
CHUNK_TOLERANCE = 0.045
# The four rows that the rest of the house quotes are nearer.
NAMED_TOLERANCE = 0.025
PREFILL_TOLERANCE = (
    0.055  # two digits (1.36 is printed as 1.4), and 4.23 instead of 4.34 billion weights: the unused tail is gone
)
# A denoise step has 50 text keys where 129 were counted.
STEP_TOLERANCE = 0.02

FULL = read_model("aha_wam_full")
VAE = ",image_encoder=fp8"  # the published rows below bf16 have the VAE in fp8
PROPRIO = ",text=fp8,state=fp8"  # and the text and proprio keys and values, which our engines leave in the base type
PLANS = {"bf16": "bf16", "fp16": "fp16", "fp8": "fp8" + VAE + PROPRIO, "fp4": "nvfp4" + VAE, "int4": "int4_weights"}


# Counted by hand for the chunk after the exact rewrites: (10^9 bytes of weights in bf16, GFLOP) of facts/performance.md 4.1, 4.2
HAND = {
    "vae": (0.108, 200.0),
    "observation": (0.1686, 35.9),
    "editor": (2.455, 230.8),
    "proprio": (0.3878, 0.39),
    "denoise": (1.6358, 27.7),
}


def chunk_ms(model: ModelCosts, device: str, weights: str, steps: int) -> float:
    return floors(model, load_device(device), PLANS[weights], steps).floors["act"].total_ms


def test_the_stored_costs_are_those_of_the_stages():
    pytest.importorskip("torch", reason="needs edgewam[train]")
    from edgewam.recipes.roofline_table import FULL as NAME
    from edgewam.recipes.roofline_table import count_full

    assert count_full().to_json() == read_model(NAME).to_json(), (
        f"the stages changed: rewrite {MODELS / NAME}.json with python -m edgewam.recipes.roofline_table"
    )


@pytest.mark.parametrize(("device", "weights", "published"), PUBLISHED, ids=lambda value: value if isinstance(value, str) else "")
def test_the_floor_of_a_chunk_is_the_published_one(device, weights, published):
    found = [chunk_ms(FULL, device, weights, steps) for steps in (10, 2, 1)]
    assert found == pytest.approx(published, rel=CHUNK_TOLERANCE)


@pytest.mark.parametrize(
    ("device", "weights", "published"),
    [("h200:lent", "bf16", 1.77), ("h200:lent", "fp8", 0.91), ("rtx-5090", "bf16", 4.65), ("rtx-5090", "fp8", 2.38),
     ("thor", "bf16", 24.8), ("thor", "fp8", 12.8), ("orin", "fp16", 36)],
)  # fmt: skip
def test_the_quoted_floors_hold_without_any_correction(device, weights, published):
    assert chunk_ms(FULL, device, weights, 2) == pytest.approx(published, rel=NAMED_TOLERANCE)


@pytest.mark.parametrize(
    ("device", "plan", "published"),
    [("rtx-5090", "bf16", 5.0), ("rtx-5090", "fp8", 2.5), ("rtx-5090", "nvfp4", 1.4), ("rtx-4090", "bf16", 8.6),
     ("rtx-4090", "fp8", 4.3), ("thor", "bf16", 31.8), ("thor", "fp8", 15.9), ("thor", "nvfp4", 8.9),
     ("h200:lent", "bf16", 2.0), ("h200:lent", "fp8", 1.0)],
)  # fmt: skip
def test_the_floor_of_a_refresh_is_the_published_one_plus_its_memory(device, plan, published):
    where = load_device(device)
    planned = named(FULL, plan, where)
    cost = planned.costs["planner"]
    kind = max(planned.formats["planner"], key=planned.formats["planner"].get)
    # the published ones leave out the keys and values of six frames, and compute attention in the weights' format too
    alone = roofline({"planner": replace(cost, io_bytes=0)}, where, kind).total_ms
    assert alone == pytest.approx(published, rel=PREFILL_TOLERANCE)
    assert roofline({"planner": cost}, where, {"planner": planned.formats["planner"]}).total_ms >= alone


def test_the_stages_cost_what_was_counted_by_hand():
    found = {name: (work.cost.weight_bytes / 1e9, work.cost.flops / 1e9) for name, work in FULL.stages.items()}
    router = tuple(a + b for a, b in zip(HAND["observation"], HAND["editor"], strict=True))
    assert found["router"] == pytest.approx(router, rel=0.001)
    assert found["denoise"][0] == pytest.approx(HAND["denoise"][0], rel=0.005)
    assert found["denoise"][1] == pytest.approx(HAND["denoise"][1], rel=STEP_TOLERANCE)
    assert found["image_encoder"] == pytest.approx(HAND["vae"], rel=0.005)
    # folding the encoder into the text MLP takes up to a fortieth of it away
    assert found["state"][0] == pytest.approx(HAND["proprio"][0], rel=0.03)


def test_nearly_every_weight_and_operation_can_be_packed():
    for name, work in FULL.stages.items():
        if work.packable_weights:
            assert 0.995 < 2 * work.packable_weights / work.cost.weight_bytes <= 1, name
            assert 0.9 < work.packable_flops / work.cost.flops <= 1, name
    assert {name for name, work in FULL.stages.items() if not work.packable_weights} == {"begin", "finish"}


def test_steps_are_calls_of_the_denoiser_and_nothing_else():
    assert FULL.calls("act", 10) == {**FULL.calls("act", 2), "denoise": 10}
    assert FULL.calls("act") == FULL.calls("act", 2) and FULL.calls("plan", 10) == FULL.calls("plan")


def test_packed_weights_shrink_and_keys_and_values_do_not():
    where = load_device("rtx-5090")
    plain, packed = named(FULL, "bf16", where), named(FULL, "fp8", where)
    for name, work in FULL.stages.items():
        assert plain.costs[name] == work.cost
        assert packed.costs[name].io_bytes == work.cost.io_bytes
        kept = name in ("image_encoder", "text", "state")
        assert packed.costs[name].weight_bytes == work.cost.weight_bytes - (0 if kept else work.packable_weights)
    assert isinstance(plain.costs["denoise"], Cost)


def test_a_floor_in_fp8_counts_the_bytes_that_a_tensorrt_plan_leaves_unpacked():
    """`state` alone is 0.39 GB in bf16 (HAND): packed, half of it would be missing, 0.7 ms of a chunk on Thor."""
    thor = load_device("thor")
    plain, kept, packed = (named(FULL, plan, thor) for plan in ("bf16", "fp8", "fp8,text=fp8,state=fp8"))
    weights = {p.name: p.costs["state"].weight_bytes / 1e9 for p in (plain, kept, packed)}
    assert weights["bf16"] == weights["fp8"] == pytest.approx(HAND["proprio"][0], rel=0.03)
    assert weights[packed.name] == pytest.approx(HAND["proprio"][0] / 2, rel=0.04)
    assert "text in bf16; state in bf16" in kept.text and "state in bf16" not in plain.text
    whole = {plan: floors(FULL, thor, plan, 2).floors["act"].total_ms for plan in ("fp8", packed.name)}
    assert whole["fp8"] - whole[packed.name] == pytest.approx(HAND["proprio"][0] / 2 / 0.273, rel=0.04)

"""Floors: the published ones of the full-size action chunk are reproduced from its bytes and operations, and the law holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewam.core.errors import EdgewamError
from edgewam.core.stage import Cost
from edgewam.profiles.device import load_device
from edgewam.profiles.roofline import roofline

# Sizes of the full model on the chunk path after the exact hoists (facts/performance.md 4.1, 4.2; facts/aha_wam.md 8).
VAE_GFLOP, VAE_BYTES_16 = 200.0, 287e6  # one image, 2-D form: 108 MB of weights and its streamed activations, at 16 bit
OBS_WEIGHTS, OBS_GFLOP = 84.3e6, 35.9  # key projection folded away, second value linear on 32 rows
EDITOR_WEIGHTS, EDITOR_GFLOP, EDITOR_IO = 1.2276e9, 230.8, 88e6  # planner K/V in and out, bf16 in every plan
PROPRIO_WEIGHTS, PROPRIO_GFLOP = 193.9e6, 0.39  # text MLP and 30 cross K/V projections for one row
STEP_WEIGHTS, STEP_GFLOP, STEP_IO = 817.9e6, 27.7, 56e6  # routed K/V and text K/V after pad collapse, bf16 in every plan
PREFILL_WEIGHTS, PREFILL_GFLOP = 4.34e9, 1050.0
BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp4": 0.5625, "int4": 0.53125}  # 4-bit: one scale byte per 16, bf16 per 64


def chunk_costs(weights: str) -> dict[str, Cost]:
    """Stage costs of one chunk with weights of one format; the VAE is never below fp8, and at 16 bit for weight-only plans."""
    size = BYTES[weights]
    vae_bytes = VAE_BYTES_16 * (1.0 if weights in ("bf16", "fp16", "int4") else 0.5)

    def cost(num_weights, gflop, rows, io_bytes=0.0):
        return Cost(int(num_weights * size), int(gflop * 1e9), rows, int(io_bytes))

    return {
        "vae": Cost(int(vae_bytes), int(VAE_GFLOP * 1e9), 480, 0),
        "obs": cost(OBS_WEIGHTS, OBS_GFLOP, 480),
        "editor": cost(EDITOR_WEIGHTS, EDITOR_GFLOP, 120, EDITOR_IO),
        "proprio": cost(PROPRIO_WEIGHTS, PROPRIO_GFLOP, 1),
        "step": cost(STEP_WEIGHTS, STEP_GFLOP, 16, STEP_IO),
    }


def chunk_floor(device: str, weights: str, steps: int) -> float:
    formats = {name: weights for name in chunk_costs(weights)}
    if weights == "int4":
        formats = dict.fromkeys(formats, "bf16")  # weight-only: unpacked to 16 bit before the product
    elif weights == "fp4":
        formats["vae"] = "fp8"
    return roofline(chunk_costs(weights), load_device(device), formats, {"step": steps}).total_ms


# facts/performance.md 4.4, milliseconds at 10, 2 and 1 steps
PUBLISHED = [
    ("rtx-5090", "bf16", (12.2, 4.65, 3.71)),
    ("rtx-5090", "fp8", (6.3, 2.38, 1.89)),
    ("rtx-5090", "fp4", (3.9, 1.58, 1.29)),
    ("rtx-5090d", "bf16", (12.8, 5.25, 4.31)),
    ("rtx-5090d", "fp8", (6.6, 2.66, 2.17)),
    ("rtx-5090d", "fp4", (4.1, 1.78, 1.49)),
    ("rtx-4090", "bf16", (21.1, 7.69, 6.01)),
    ("rtx-4090", "fp8", (10.9, 3.95, 3.08)),
    ("thor", "bf16", (74.4, 24.8, 18.6)),
    ("thor", "fp8", (38.4, 12.8, 9.6)),
    ("thor", "fp4", (22.9, 7.7, 5.8)),
    ("thor:flashrt", "bf16", (84, 28.5, 21.5)),
    ("thor:flashrt", "fp8", (43, 14.5, 10.9)),
    ("gb10", "bf16", (75, 25.3, 19)),
    ("gb10", "fp8", (39, 13.0, 9.8)),
    ("gb10", "fp4", (23, 8.0, 6.1)),
    ("orin", "fp16", (102, 36, 28)),
    ("orin", "int4", (35, 16, 14)),
    ("h100", "bf16", (6.2, 2.14, 1.63)),
    ("h100", "fp8", (3.2, 1.10, 0.84)),
    ("h200", "bf16", (4.4, 1.55, 1.20)),
    ("h200", "fp8", (2.3, 0.80, 0.62)),
    ("h200:lent", "bf16", (4.9, 1.77, 1.37)),
    ("h200:lent", "fp8", (2.5, 0.91, 0.70)),
]


@pytest.mark.parametrize(("device", "weights", "published"), PUBLISHED, ids=lambda value: value if isinstance(value, str) else "")
def test_chunk_floor_is_the_published_one(device, weights, published):
    floors = [chunk_floor(device, weights, steps) for steps in (10, 2, 1)]
    assert floors == pytest.approx(published, rel=0.02)


def test_four_bit_on_h200_is_bound_by_the_editors_products():
    floor = roofline(chunk_costs("int4"), load_device("h200:lent"), "bf16", {"step": 2})
    assert floor.total_ms == pytest.approx(0.84, rel=0.02)
    assert {s.name: s.bound for s in floor.stages}["editor"] == "compute"


@pytest.mark.parametrize(
    ("device", "weights", "published"),
    [("rtx-5090", "bf16", 5.0), ("rtx-5090", "fp8", 2.5), ("rtx-5090", "fp4", 1.4), ("rtx-4090", "bf16", 8.6),
     ("rtx-4090", "fp8", 4.3), ("thor", "bf16", 31.8), ("thor", "fp8", 15.9), ("thor", "fp4", 8.9),
     ("h200:lent", "bf16", 2.0), ("h200:lent", "fp8", 1.0)],
)  # fmt: skip
def test_prefill_floor_is_the_published_one(device, weights, published):
    cost = Cost(int(PREFILL_WEIGHTS * BYTES[weights]), int(PREFILL_GFLOP * 1e9), 120, 0)
    assert roofline({"prefill": cost}, load_device(device), weights).total_ms == pytest.approx(published, rel=0.03)


def test_missing_matrix_unit_falls_to_16_bit_products_and_says_so():
    floor = roofline({"a": Cost(0, 10**12, 1, 0)}, load_device("rtx-4090"), "fp4").stages[0]
    assert floor.compute_format == "bf16" and floor.ms == pytest.approx(1e3 / 165)
    assert roofline({"a": Cost(0, 1, 1, 0)}, load_device("orin"), "fp8").stages[0].compute_format == "bf16"


costs = st.builds(Cost, *[st.integers(0, 10**12)] * 2, st.integers(1, 1024), st.integers(0, 10**10))


@given(costs, st.integers(1, 20))
def test_floor_is_the_larger_term_times_the_calls(cost, calls):
    device = load_device("rtx-5090")
    floor = roofline({"a": cost}, device, "bf16", {"a": calls})
    memory = (cost.weight_bytes + cost.io_bytes) / 1792e9 * 1e3
    compute = cost.flops / 209.5e12 * 1e3
    assert floor.total_ms == pytest.approx(calls * max(memory, compute))
    assert floor.stages[0].bound == ("memory" if memory >= compute else "compute")


@given(st.dictionaries(st.sampled_from("abcdef"), costs, min_size=1))
def test_total_is_the_sum_of_the_stages(plan):
    device = load_device("h200")
    total = sum(roofline({name: cost}, device).total_ms for name, cost in plan.items())
    assert roofline(plan, device).total_ms == pytest.approx(total)


def test_rates_measured_in_a_run_replace_the_datasheet():
    device = load_device("h200").with_rates("now", 2000.0, {"bf16": 500.0})
    assert roofline({"a": Cost(2 * 10**9, 0, 1, 0)}, device).total_ms == pytest.approx(1.0)
    assert device.compute_format("fp8") == "bf16" and "measured in this run" in device.bandwidth_gb_s.source


def test_names_that_match_no_stage_are_refused():
    plan, device = {"a": Cost(1, 1, 1, 1)}, load_device("h200")
    with pytest.raises(EdgewamError, match="No cost for the stages"):
        roofline(plan, device, "bf16", {"denoise": 2})
    with pytest.raises(EdgewamError, match="no format"):
        roofline(plan, device, {})

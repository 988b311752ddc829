"""The roofline's table and JSON: the law of the numbers, "-" where nothing was measured, and programs that fit the cache."""

import json
from dataclasses import replace

import pytest

from edgewam.core.errors import EdgewamError
from edgewam.core.stage import Cost
from edgewam.profiles.device import load_device
from edgewam.profiles.floor_report import Measured, _number
from edgewam.profiles.model_costs import ModelCosts, StageWork, read_model
from edgewam.recipes.roofline import floors

FULL = read_model("aha_wam_full")
H200 = load_device("h200:lent")
SMALL_STAGE = StageWork(Cost(2_000_000, 10**9, 16, 1000), 10**6, 10**9)
SMALL = ModelCosts("toy", "bf16", {"step": SMALL_STAGE}, {"act": {"step": (0, 1)}}, {"act": 2})
EMPTY = ModelCosts("toy", "bf16", {"step": SMALL_STAGE}, {"act": {"step": (1, 0)}}, {"act": 0})


def test_without_a_measurement_its_columns_are_dashes():
    report = floors(FULL, H200, "bf16")
    rows = [line.split() for line in report.text().splitlines() if line.startswith(("image_encoder", "denoise", "one run"))]
    assert rows and all(row[-2:] == ["-", "-"] for row in rows)
    assert all(s["measured_ms"] is s["ratio"] is None for s in report.to_json()["programs"]["act"]["stages"])


def test_ratio_is_measured_over_floor_for_stages_and_programs():
    measured = Measured("here", {("act", "denoise"): 1.0}, {"act": 5.0})
    data = floors(FULL, H200, "bf16", 10, measured).to_json()["programs"]["act"]
    step = next(s for s in data["stages"] if s["name"] == "denoise")
    assert step["calls"] == 10 and step["ratio"] == pytest.approx(1.0 / step["ms"])
    assert data["ratio"] == pytest.approx(5.0 / data["floor_ms"]) and data["steps"] == 10
    assert data["floor_ms"] == pytest.approx(sum(s["calls"] * s["ms"] for s in data["stages"]))


def test_the_json_is_plain_and_names_the_source_of_every_rate():
    data = json.loads(json.dumps(floors(FULL, H200, "fp8").to_json(), allow_nan=False))
    assert set(data["peak_tflops"]) == {"bf16", "fp8"}, "the image encoder stays in bf16"
    assert all(len(rate["source"]) > 5 for rate in (data["bandwidth_gb_s"], *data["peak_tflops"].values()))
    assert list(data["programs"]) == ["act", "plan", "prompt"], "what runs most often comes first"


def test_the_head_says_what_the_floors_stand_on():
    text = floors(FULL, H200, "fp8").text()
    for part in ("full size", "NVIDIA H200 SXM (sm_90, h200:lent)", "4300 GB/s", "fp8 1576 TFLOP/s", "image_encoder in bf16"):
        assert part in text
    assert max(map(len, text.splitlines())) < 200


def test_memory_sets_no_floor_where_everything_lies_in_the_cache():
    small = floors(SMALL, H200, "bf16")
    assert small.cached == ("act",) and "lie in the cache" in small.text()
    assert small.floors["act"].stages[0].memory_ms == 0 and small.floors["act"].total_ms == pytest.approx(2 * 1e9 / 788e9)
    bare = floors(SMALL, replace(H200, cache_mb=None), "bf16")
    assert bare.cached == () and bare.floors["act"].stages[0].memory_ms > 0
    assert floors(FULL, H200, "bf16").cached == ()


def test_steps_of_a_model_without_a_loop_are_refused():
    assert floors(SMALL, H200, "bf16", 7).floors["act"].stages[0].calls == 7
    with pytest.raises(EdgewamError, match="no loop, so --steps means nothing"):
        floors(EMPTY, H200, "bf16", 7)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0004, "<0.001"), (0.0123, "0.012"), (0.951, "0.951"), (1.058, "1.06"), (28.04, "28.0"), (2657.4, "2657")],
)
def test_numbers_have_three_digits_where_there_are_as_many(value, text):
    assert _number(value) == text

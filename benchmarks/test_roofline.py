"""What a roofline costs: it is asked for in reports and in every `profile --roofline`, so it must be for nothing."""

import pytest

from edgewam.profiles.device import device_names, load_device
from edgewam.profiles.model_costs import read_model
from edgewam.recipes.roofline import floors


def test_reading_every_device_file(benchmark):
    devices = benchmark(lambda: [load_device(name) for name in device_names()])
    assert len(devices) >= 9


def test_reading_the_costs_of_the_full_size(benchmark):
    assert benchmark(read_model, "aha_wam_full").stages


@pytest.mark.parametrize("plan", ["bf16", "nvfp4"])
def test_floors_of_the_full_size(benchmark, plan):
    model, device = read_model("aha_wam_full"), load_device("thor")
    report = benchmark(floors, model, device, plan)
    assert 5 < report.floors["act"].total_ms < 30


def test_the_table_of_the_full_size(benchmark):
    report = floors(read_model("aha_wam_full"), load_device("thor"), "fp8")
    assert "denoise" in benchmark(report.text)

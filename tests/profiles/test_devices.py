"""Device files: each one fits the schema, every number names its source, and a bad file says what is wrong."""

import pytest

from edgewam.core.errors import EdgewamError
from edgewam.profiles.device import device_names, find_device, load_device, parse_device

GOOD = """
title = "X"
sm = "sm_120"
memory_gb = { value = 1, source = "s" }
bandwidth_gb_s = { value = 1, source = "s" }
[peak_tflops]
bf16 = { value = 1, source = "s" }
"""


def test_every_promised_device_has_a_file():
    promised = {"rtx-5090", "rtx-5090d", "rtx-4090", "thor", "orin", "gb10", "h100", "h200"}
    assert promised <= set(device_names())


@pytest.mark.parametrize("name", device_names())
def test_device_file_fits_the_schema_and_every_number_has_a_source(name):
    device = load_device(name)
    for quantity in (device.memory_gb, device.bandwidth_gb_s, *device.peak_tflops.values()):
        assert quantity.value > 0 and len(quantity.source) > 5
    peaks = {name: q.value for name, q in device.peak_tflops.items()}
    assert peaks.get("fp8", 1e9) > peaks["bf16"] and peaks.get("fp4", 1e9) > peaks.get("fp8", 0)
    assert 100 < device.bandwidth_gb_s.value < 20_000 and 4 < device.memory_gb.value < 1000


def test_a_card_is_found_by_its_exact_driver_name_only():
    found = find_device("NVIDIA H200")
    assert found is not None and found.name == "h200"
    assert find_device("NVIDIA H200 NVL") is None and find_device("") is None


def test_driver_names_are_unique():
    names = [gpu for name in device_names() for gpu in load_device(name).gpu_names]
    assert len(names) == len(set(names)) >= len(device_names())


def test_measured_variant_keeps_what_was_not_measured():
    thor, measured = load_device("thor"), load_device("thor:flashrt")
    assert measured.bandwidth_gb_s.value == 243 and measured.name == "thor:flashrt"
    assert measured.peak_tflops["fp4"] == thor.peak_tflops["fp4"] and measured.memory_gb == thor.memory_gb


@pytest.mark.parametrize("name", ["rtx-6090", "thor:nobody", "../thor"])
def test_unknown_devices_list_what_there_is(name):
    with pytest.raises(EdgewamError, match="Available: "):
        load_device(name)


def test_the_good_file_of_these_tests_is_good():
    assert parse_device("x", GOOD).sm == "sm_120"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "X"', "", "lacks"),
        ('title = "X"', 'title = "X"\nspeed = 3', "unknown keys"),
        ('"sm_120"', '"120"', "sm must look like"),
        (', source = "s" }', " }", "every number is"),
        ('source = "s"', 'source = " "', "every number is"),
        ("value = 1", "value = 0", "not a positive"),
        ("bf16 =", "bf15 =", "unknown formats"),
        ("bf16 =", "fp8 =", "needs a bf16 or fp16"),
        ("[peak_tflops]", "[peak_tflops", "not TOML"),
        ("[peak_tflops]", "[measured.a]\nbandwidth_gb_s = 3\n[peak_tflops]", "every number is"),
    ],
)
def test_bad_device_files_say_what_is_wrong(old, new, message):
    assert old in GOOD
    with pytest.raises(EdgewamError, match=message):
        parse_device("x", GOOD.replace(old, new))

"""Device files: each one fits the schema, every number names its source, and a bad file says what is wrong."""

import pytest

from edgewam.core.errors import EdgewamError
from edgewam.profiles.device import device_names, find_device, formats_of, load_device, parse_device, require_format

GOOD = """
title = "X"
sm = "sm_120"
memory_gb = { value = 1, source = "s" }
bandwidth_gb_s = { value = 1, source = "s" }
[peak_tflops]
bf16 = { value = 1, source = "s" }
"""


def test_every_promised_device_has_a_file():
    promised = {"rtx-5090", "rtx-5090d", "rtx-4090", "thor", "orin", "gb10", "h100", "h200", "cpu"}
    assert promised <= set(device_names())


@pytest.mark.parametrize("name", device_names())
def test_device_file_fits_the_schema_and_every_number_has_a_source(name):
    for device in (load_device(name), *(load_device(f"{name}:{label}") for label in load_device(name).variants)):
        numbers = [device.memory_gb, device.bandwidth_gb_s, *device.peak_tflops.values()]
        for quantity in [*numbers, *filter(None, [device.cache_mb])]:
            assert quantity.value > 0 and len(quantity.source) > 5
        peaks = {name: q.value for name, q in device.peak_tflops.items()}
        assert peaks.get("fp8", 1e9) > peaks[device.plain_format] and peaks.get("fp4", 1e9) > peaks.get("fp8", 0)
        assert peaks["int8"] > peaks[device.plain_format], "every device multiplies int8, faster than what it would replace"
        assert 20 < device.bandwidth_gb_s.value < 20_000 and 4 < device.memory_gb.value < 1000
        assert device.cache_mb is None or 1 < device.cache_mb.value < 1000


# facts/performance.md 4.4: GB/s and dense TFLOP/s, row by row
FACTS = {
    "rtx-5090": (1792, {"bf16": 209.5, "fp8": 419, "fp4": 1676}),
    "rtx-5090d": (1792, {"bf16": 148, "fp8": 297, "fp4": 1188}),
    "rtx-4090": (1008, {"bf16": 165, "fp8": 330}),
    "thor": (273, {"bf16": 259, "fp8": 517, "fp4": 1035}),
    "thor:flashrt": (243, {"bf16": 110, "fp8": 270}),
    "gb10": (273, {"bf16": 125, "fp8": 250, "fp4": 500}),
    "orin": (205, {"fp16": 42.5}),
    "h100": (3350, {"bf16": 989, "fp8": 1979}),
    "h200": (4800, {"bf16": 989, "fp8": 1979}),
    "h200:lent": (4300, {"bf16": 788}),
}


@pytest.mark.parametrize("name", FACTS)
def test_the_numbers_are_those_of_the_facts(name):
    bandwidth, peaks = FACTS[name]
    device = load_device(name)
    assert device.bandwidth_gb_s.value == bandwidth
    assert {kind: device.peak_tflops[kind].value for kind in peaks} == peaks


@pytest.mark.parametrize(
    ("sm", "formats"),
    [
        (None, {"fp32", "int8"}),
        ("sm_75", {"fp32", "int8", "fp16"}),
        ("sm_80", {"fp32", "int8", "fp16", "bf16"}),
        ("sm_87", {"fp32", "int8", "fp16", "bf16"}),
        ("sm_89", {"fp32", "int8", "fp16", "bf16", "fp8"}),
        ("sm_90", {"fp32", "int8", "fp16", "bf16", "fp8"}),
        ("sm_110", {"fp32", "int8", "fp16", "bf16", "fp8", "fp4"}),
        ("sm_120", {"fp32", "int8", "fp16", "bf16", "fp8", "fp4"}),
    ],
)
def test_fp8_exists_from_sm_89_and_fp4_from_sm_100_on(sm, formats):
    assert set(formats_of(sm)) == formats


@pytest.mark.parametrize(
    ("device", "wanted", "message"),
    [
        ("orin", "fp8", "FP8 needs sm_89; NVIDIA Jetson AGX Orin 64GB is sm_87: use int8."),
        ("rtx-4090", "fp4", "FP4 needs sm_100; NVIDIA GeForce RTX 4090 is sm_89: use fp8."),
        ("orin", "fp4", "is sm_87: use int8."),
        ("cpu", "bf16", "has no CUDA: use fp32."),
        ("cpu", "fp8", "has no CUDA: use int8."),
        ("h100", "int3", "Unknown format 'int3'. Known: fp32, fp16"),
    ],
)
def test_a_format_that_a_device_lacks_is_refused_with_the_alternative(device, wanted, message):
    with pytest.raises(EdgewamError) as refused:
        load_device(device).require_format(wanted)
    assert message in str(refused.value)


@pytest.mark.parametrize("name", device_names())
def test_every_rate_of_a_file_is_of_a_format_that_exists_there(name):
    device = load_device(name)
    for rate in device.peak_tflops:
        device.require_format(rate)
    require_format("int8", device.sm)


def test_a_card_is_found_by_its_exact_driver_name_only():
    found = find_device("NVIDIA H200")
    assert found is not None and found.name == "h200"
    assert find_device("NVIDIA H200 NVL") is None and find_device("") is None


def test_driver_names_are_unique():
    names = [gpu for name in device_names() for gpu in load_device(name).gpu_names]
    assert len(names) == len(set(names))
    assert all(bool(load_device(name).gpu_names) == (load_device(name).sm is not None) for name in device_names())


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


def test_a_quantised_format_without_a_known_rate_has_no_floor():
    device = parse_device("x", GOOD)
    device.require_format("fp16")  # counted as bf16
    with pytest.raises(EdgewamError, match="No rate of int8 products is known for X, only of bf16"):
        device.require_format("int8")


def test_a_device_without_cuda_needs_no_sm_but_a_float32_rate():
    device = parse_device("x", GOOD.replace('sm = "sm_120"', "").replace("bf16", "fp32"))
    assert device.sm is None and device.plain_format == "fp32"
    with pytest.raises(EdgewamError, match=r"BF16 needs sm_80; Device file 'x\.toml' has no CUDA: use fp32"):
        parse_device("x", GOOD.replace('sm = "sm_120"', ""))


def test_a_file_may_not_promise_a_format_that_the_card_lacks():
    with pytest.raises(EdgewamError, match=r"FP8 needs sm_89; Device file 'x\.toml' is sm_87"):
        parse_device("x", GOOD.replace("sm_120", "sm_87") + 'fp8 = { value = 1, source = "s" }\n')


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
        ("bf16 =", "fp8 =", "needs a bf16, fp16 or fp32"),
        ("[peak_tflops]", "[peak_tflops", "not TOML"),
        ("[peak_tflops]", "[measured.a]\nbandwidth_gb_s = 3\n[peak_tflops]", "every number is"),
    ],
)
def test_bad_device_files_say_what_is_wrong(old, new, message):
    assert old in GOOD
    with pytest.raises(EdgewamError, match=message):
        parse_device("x", GOOD.replace(old, new))

"""Rates of a processor: what the command prints fits the device file, and the cache is read as the system writes it."""

import pytest

from benchmarks.cpu_rates import as_toml
from edgewam.profiles.device import DEVICES, parse_device
from edgewam.recipes import roofline_rates
from edgewam.recipes.roofline_rates import cache_bytes


@pytest.mark.parametrize("int8", [True, False])
def test_what_is_printed_is_a_variant_of_the_device_file(int8):
    rates = {"copy_gb_s": 12.345, "fp32": 0.1} | ({"int8": 0.4} if int8 else {})
    text = (DEVICES / "cpu.toml").read_text() + "\n" + as_toml(rates, "my-cpu", 2, "My CPU, today")
    device = parse_device("cpu", text).measured("my-cpu")
    assert device.bandwidth_gb_s.value == 12.3 and device.peak_tflops["fp32"].value == 0.1
    assert (device.peak_tflops["int8"].value == 0.4) is int8 and "My CPU" in device.bandwidth_gb_s.source


def test_the_last_cache_level_counts(tmp_path):
    for index, (level, size) in enumerate([("1", "32K"), ("3", "32768K"), ("2", "1M")]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
    assert cache_bytes(str(tmp_path)) == 32 * 2**20
    assert cache_bytes(str(tmp_path / "nothing")) is None


def test_rates_are_positive_and_two_threads_count_twice(monkeypatch):
    monkeypatch.setattr(roofline_rates, "TRY_S", 0.05)
    monkeypatch.setattr(roofline_rates, "SIZE", 128)
    monkeypatch.setattr(roofline_rates, "COPY_BYTES", 10**6)
    monkeypatch.setattr(roofline_rates, "_best", lambda function: (function(), 0.5)[1])
    assert roofline_rates.fp32_rate(2) == 2 * roofline_rates.fp32_rate(1) == pytest.approx(2 * 2 * 128**3 / 0.5 / 1e12)
    assert roofline_rates.copy_gb_s_rate(2) == pytest.approx(2 * 2e6 / 0.5 / 1e9)
    pytest.importorskip("onnxruntime", reason="needs edgewam[onnx]")
    assert roofline_rates.int8_rate(1) == pytest.approx(2 * 128**3 / 0.5 / 1e12)

"""The timing contract: complete or refused, round-trips, one line that names every condition, facts read without torch."""

import json
import subprocess
import sys

import pytest

from edgewam.core.errors import EdgewamError
from edgewam.profiles import machine as machine_module
from edgewam.profiles.contract import TimingContract
from edgewam.profiles.machine import Machine, read_gpu, read_machine

FIELDS = {
    "engine": "onnxruntime", "precision": "fp32", "steps": 2, "shapes": {"image": (192, 160, 3), "state": (14,)},
    "stages": ("vae", "denoise"), "host_copies": True, "threads": 2, "warmup": 20, "n": 300,
}  # fmt: skip


def test_contract_round_trips_through_json():
    contract = TimingContract.here(**FIELDS)
    assert TimingContract.from_json(json.loads(json.dumps(contract.to_json()))) == contract


def test_text_is_one_line_that_names_every_condition():
    text = TimingContract.here(**FIELDS, artifact="abcdef0123456789").text()
    assert "\n" not in text
    for part in ("onnxruntime, fp32, 2 steps, 2 threads", "image 192x160x3", "stages vae+denoise", "host copies inside",
                 "refresh off", "warm-up 20, n 300", "artifact abcdef012345", "clocks"):  # fmt: skip
        assert part in text


@pytest.mark.parametrize("change", [{"engine": ""}, {"stages": ()}, {"n": 0}, {"threads": 0}, {"warmup": -1}, {"precision": ""}])
def test_an_incomplete_contract_is_refused(change):
    with pytest.raises(EdgewamError, match="not complete"):
        TimingContract.here(**{**FIELDS, **change})


def test_foreign_json_is_refused():
    with pytest.raises(EdgewamError, match="no timing contract"):
        TimingContract.from_json({"speed": 3})


def test_difference_names_what_makes_two_figures_incomparable():
    here = TimingContract.here(**FIELDS)
    assert here.difference(TimingContract.here(**{**FIELDS, "n": 7})) == []
    other = TimingContract.here(**{**FIELDS, "steps": 10, "threads": 1})
    assert here.difference(other) == ["steps", "threads"]


def test_a_gpu_figure_without_a_gpu_is_refused():
    no_gpu = Machine("cpu", 2, None, None, 1.0, 0.0, "Linux")
    with pytest.raises(EdgewamError, match="nvidia-smi"):
        TimingContract.here(**FIELDS, on_gpu=True, machine=no_gpu)


def test_gpu_facts_come_from_nvidia_smi(monkeypatch):
    line = "NVIDIA H200, 580.159.03, 143771 MiB, 1980 MHz, 3201 MHz, 1980 MHz, 700.00 W, 41, [N/A]\n"
    monkeypatch.setattr(machine_module, "_run", lambda program, *_, timeout_s: line if program == "nvidia-smi" else None)
    gpu = read_gpu()
    assert (gpu["name"], gpu["driver"], gpu["sm_clock"]) == ("NVIDIA H200", "580.159.03", "1980 MHz") and "persistence" not in gpu
    contract = TimingContract.here(**FIELDS, on_gpu=True)
    assert contract.device == "NVIDIA H200" and "SM 1980 MHz" in contract.text()


@pytest.mark.parametrize("output", [None, "", "No devices were found\n", "a, b\n"])
def test_no_gpu_gives_no_facts(monkeypatch, output):
    monkeypatch.setattr(machine_module, "_run", lambda *_, timeout_s: output)
    assert read_gpu() == {} and read_machine().power_mode is None


def test_power_mode_of_a_jetson_is_read(monkeypatch):
    text = "NV Power Mode: MAXN\n0\n"
    monkeypatch.setattr(machine_module, "_run", lambda program, *_, timeout_s: text if program == "nvpmodel" else None)
    assert read_machine().power_mode == "MAXN"


def test_this_machine_has_a_name_and_usable_cpus():
    machine = read_machine()
    assert machine.cpu and machine.num_cpus >= 1 and machine.memory_gb > 0
    json.dumps(machine.to_json(), allow_nan=False)


def test_profiles_import_no_torch():
    code = "import sys, edgewam.profiles.report, edgewam.profiles.device; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

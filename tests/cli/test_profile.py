"""`edgewam profile --roofline` and `--trace` as a user calls them: floors of devices that are not here, and traces of what is."""

import json
import subprocess
import sys

import pytest

from edgewam.profiles.device import load_device
from edgewam.runtime.bundle import Bundle
from tests.cli.command import TIMEOUT_S, environment, here
from tests.profiles.trace_format import require_trace

ABSENT = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors")


@pytest.fixture(scope="module")
def profiled(shipped, tmp_path_factory):
    """What `profile --json` prints, in a file."""
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    path.write_text(here("profile", shipped / "bundle", "-n", 5, "--warmup", 2, "--threads", 1, "--json").ok().out)
    return path


def changed(path, out, **contract):
    """A copy of a profile whose contracts say something else."""
    data = json.loads(path.read_text())
    for profile in data.values():
        profile["contract"] |= contract
    out.write_text(json.dumps(data))
    return out


def test_a_floor_needs_no_device_no_torch_and_no_engine():
    arguments = ["edgewam", "profile", "--roofline", "--device", "thor", "--plan", "fp8", "--json"]
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\nsys.argv = {arguments!r}\n"
        "from edgewam import cli\ncli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    act = json.loads(done.stdout)["programs"]["act"]
    assert act["steps"] == 2 and 12 < act["floor_ms"] < 14
    assert "NVIDIA Jetson AGX Thor" in done.stderr and "denoise" in done.stderr


def test_a_bundles_floor_takes_costs_and_calls_from_its_manifest(shipped):
    found = (
        here("profile", shipped / "bundle", "--roofline", "--device", "orin", "--plan", "fp16", "--steps", 10, "--json").ok().json
    )
    bundle = Bundle.open(shipped / "bundle", threads=1)
    for name, program in found["programs"].items():
        declared = bundle.pipeline.programs.programs[name]
        for row in program["stages"]:
            calls = 10 if row["name"] == "denoise" else declared.num_calls(row["name"])
            cost = bundle.stages[row["name"]].cost
            assert (row["calls"], row["flops"], row["weight_bytes"]) == (calls, cost.flops, round(cost.weight_bytes / 2))
            assert row["compute_ms"] == pytest.approx(cost.flops / load_device("orin").peak_tflops["fp16"].value / 1e9)


def test_the_quantised_artifact_is_a_plan(shipped):
    plan = shipped / "quantized" / "plan.json"
    line = ("profile", "--roofline", "--size", "small", "--device", "cpu", "--json")
    packed, plain = (here(*line, *extra).ok().json["programs"]["act"] for extra in (("--plan", plan), ()))
    rows = {row["name"]: (row, other) for row, other in zip(packed["stages"], plain["stages"], strict=True)}
    assert rows["denoise"][0]["weight_bytes"] < 0.3 * rows["denoise"][1]["weight_bytes"]
    assert rows["denoise"][0]["compute_format"] == "int8" and rows["denoise"][1]["compute_format"] == "fp32"
    assert packed["floor_ms"] < plain["floor_ms"]


def test_a_measured_file_fills_the_column(shipped, profiled):
    done = here("profile", shipped / "bundle", "--roofline", "--measured", profiled, "--json").ok()
    source = json.loads(profiled.read_text())
    for name, program in done.json["programs"].items():
        assert program["measured_ms"] == source[name]["total"]["p50_ms"]
        assert program["ratio"] == pytest.approx(program["measured_ms"] / program["floor_ms"])
        for row in program["stages"]:
            assert row["measured_ms"] == source[name]["stages"][row["name"]]["p50_ms"]
    assert done.json["device"]["name"].startswith("cpu") and done.json["contracts"]["act"] == source["act"]["contract"]


def test_a_benchmark_record_fills_the_column(shipped):
    from benchmarks.results import RESULTS

    record = RESULTS / "amd-epyc" / "chunk.json"
    done = here("profile", shipped / "bundle", "--roofline", "--measured", record, "--json").ok().json
    timings = json.loads(record.read_text())["sections"]["onnxruntime_2_L_chunk"]["timings"]
    assert done["programs"]["act"]["measured_ms"] == timings["L_chunk"]["p50_ms"] and done["device"]["name"] == "cpu:amd-epyc"


@pytest.mark.parametrize(
    ("contract", "extra", "message"),
    [
        ({}, ("--device", "thor"), "the floor is that of NVIDIA Jetson AGX Thor"),
        ({}, ("--plan", "int8"), "is fp32, the plan int8"),
        ({"steps": 4}, (), "has 4 steps, the floor 2"),
        ({"device": "NVIDIA H900"}, (), "NVIDIA H900, which has no device file. Available: cpu, gb10"),
        ({"device": "NVIDIA Thor"}, ("--device", "orin", "--plan", "fp16"), "was measured on NVIDIA Thor, the floor"),
    ],
)
def test_what_was_measured_on_something_else_is_refused(contract, extra, message, shipped, profiled, tmp_path):
    file = changed(profiled, tmp_path / "other.json", **contract)
    if "steps" in contract:  # programs without a loop have none
        data = json.loads(file.read_text())
        file.write_text(json.dumps({"act": data["act"]}))
    done = here("profile", shipped / "bundle", "--roofline", "--measured", file, *extra)
    assert done.code == 1 and message in done.err, done.err


def test_a_measurement_of_a_card_finds_its_device(shipped, profiled, tmp_path):
    file = changed(profiled, tmp_path / "thor.json", device="NVIDIA Thor", precision="bf16")
    done = here("profile", shipped / "bundle", "--roofline", "--measured", file, "--plan", "bf16", "--json").ok()
    assert done.json["device"]["name"] == "thor"


def test_a_bundle_is_measured_on_this_machine_when_no_device_is_named():
    done = here("profile", "--roofline", "--size", "small", "-n", 3, "--warmup", 1, "--threads", 1, "--json").ok()
    act = done.json["programs"]["act"]
    assert act["measured_ms"] > 0 and act["ratio"] > 1, "nothing is faster than its floor"
    assert all(row["measured_ms"] is not None for row in act["stages"])
    assert "measured in this run" in done.json["bandwidth_gb_s"]["source"] and done.json["contracts"]["act"]["n"] == 3


def test_a_trace_shows_every_stage_of_every_program(shipped, tmp_path):
    file = tmp_path / "trace.json"
    done = here("profile", shipped / "bundle", "--trace", file, "-n", 3, "--warmup", 1, "--threads", 1, "--json").ok()
    data = json.loads(file.read_text())
    tracks = require_trace(data)
    programs = data["otherData"]["programs"]
    assert set(programs) == {"prompt", "plan", "act"} and len(tracks) == 3 and "perfetto" in done.err
    assert done.json["events"] == sum(map(len, tracks.values()))
    for name, program in programs.items():
        events = [e for events in tracks.values() for e in events if e["cat"] == name]
        assert sum(e["dur"] for e in events) / 1e3 == pytest.approx(sum(program["stage_ms"].values()))
        assert sum(program["stage_ms"].values()) <= sum(program["run_ms"]) and len(program["run_ms"]) == 3
        assert program["contract"]["n"] == 3 and program["contract"]["artifact"]
    assert sum(e["name"] == "denoise" for events in tracks.values() for e in events) == 3 * 2
    assert any(e["name"] == "push memory" for events in tracks.values() for e in events)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--roofline --device orin --plan fp8", "FP8 needs sm_89; NVIDIA Jetson AGX Orin 64GB is sm_87: use int8."),
        ("--roofline --device rtx-4090 --plan nvfp4", "FP4 needs sm_100"),
        ("--roofline --device rtx-6090", "Unknown device 'rtx-6090'. Available: cpu, gb10"),
        ("--roofline --device thor --plan fp9", "Unknown plan 'fp9'. Available: "),
        ("--roofline --device thor --plan nowhere/plan.json", "edgewam quantize"),
        ("--roofline --device thor --size huge", "Unknown size 'huge'. Available: full, small."),
        ("{bundle} --roofline --size small", "has its own size"),
        ("{bundle} --roofline --measured nowhere.json", "neither the output of 'edgewam profile --json'"),
        ("--device thor", "--device only means something with --roofline"),
        ("--plan fp8 --steps 3", "--plan, --steps only mean something with --roofline"),
        ("--roofline --trace x.json", "different jobs"),
        ("--roofline --device thor -n 5", "so -n would do nothing"),
        ("--roofline --device thor --warmup 0 --threads 1", "so --warmup, --threads would do nothing. Leave that out"),
        ("--roofline --threads 1 --measured nowhere.json", "so --threads would do nothing"),
        ("--roofline --size small --plan int8 -n 5 --threads 1", "so -n would do nothing"),
        ("{bundle} --trace {bundle}/manifest.json/x.json -n 1 --warmup 0", "Cannot write the trace"),
    ],
)
def test_bad_calls_say_what_to_do(line, message, shipped):
    done = here("profile", *line.format(bundle=shipped / "bundle").split())
    assert done.code == 1 and message in done.err, done.err
    assert "Traceback" not in done.err

"""`edgewam doctor`: in time, without torch in its own process, with a true verdict and a command for every problem."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

from tests.cli.command import apart, environment, here, started

LIMIT_S = 5.0  # what a user waits for without wondering; the trials themselves are cut after 4 s
SPARE_S = 2.0  # this test shares its two cores with others


def test_it_tells_the_truth_in_time_and_imports_nothing_heavy():
    code = (
        "import sys, time; began = time.monotonic(); sys.argv = ['edgewam', 'doctor', '--json']\n"
        "from edgewam import cli\n"
        "try: cli.main()\n"
        "except SystemExit as stop: status = stop.code or 0\n"
        "heavy = sorted({'torch', 'onnxruntime', 'mujoco'} & set(sys.modules))\n"
        "print(status, time.monotonic() - began, *heavy, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    status, seconds, *heavy = done.stderr.splitlines()[-1].split()
    found = json.loads(done.stdout)
    assert heavy == [] and float(seconds) < LIMIT_S + SPARE_S
    assert (status == "0") == found["ok"] == (not any(problem["blocks"] for problem in found["problems"]))
    assert found["bundle"]["ok"] and len(found["bundle"]["value"]["digest"]) == 64
    assert found["backends"]["onnxruntime"]["run"]["ok"]
    assert set(found["backends"]) >= {"eager", "onnxruntime"} and set(found["render"]) == {"egl", "osmesa", "glfw"}
    full, rtx = found["engine_libraries"]["tensorrt"], found["engine_libraries"]["tensorrt_rtx"]
    assert {"thor", "orin", "h100", "h200"} <= set(full["devices"]) and {"rtx-5090", "rtx-4090", "gb10"} <= set(rtx["devices"])
    assert "not on PyPI" in full["how"] and "https://pypi.nvidia.com" in full["how"] and "edgewam[rtx]" in rtx["how"]
    assert "engine libraries" in done.stderr
    assert found["host"]["disk_free_gb"] > 0 and found["machine"]["num_cpus"] >= 1
    assert found["extras"]["onnx"]["installed"] and found["extras"]["rtx"]["command"] == "pip install 'edgewam[rtx]'"
    for problem in found["problems"]:
        assert problem["why"] and (problem["mend"] or "processor" in problem["what"])


def test_a_damaged_bundle_blocks_and_exits_1(shipped, tmp_path):
    bundle = shutil.copytree(shipped / "bundle", tmp_path / "bundle")
    os.truncate(bundle / "prompts.safetensors", 100)
    done = here("doctor", bundle, "--json")
    assert done.code == 1 and not done.json["ok"]
    first = done.json["problems"][0]
    assert first["blocks"] and "does not match its digest" in first["why"] and first["mend"] == f"edgewam inspect {bundle}"
    assert "BLOCKS" in done.err and "cannot run the bundle yet" in done.err


def test_without_graphics_the_simulator_is_said_not_to_draw(tmp_path):
    """An empty vendor folder hides every EGL driver, as on a bare server."""
    (tmp_path / "none").mkdir()
    found = apart("doctor", "--json", env={"__EGL_VENDOR_LIBRARY_DIRS": str(tmp_path / "none"), "DISPLAY": ""})
    assert not found.json["render"]["egl"]["ok"] and found.json["render"]["egl"]["reason"]
    if not any(state["ok"] for state in found.json["render"].values()):
        assert found.code == 1
        problem = next(p for p in found.json["problems"] if p["what"] == "the simulator cannot be drawn")
        assert problem["blocks"] and problem["mend"].startswith("apt-get install")


def test_trials_that_do_not_end_are_question_marks_and_leave_no_process(tmp_path, monkeypatch):
    """Every trial hangs before it begins, so nothing here depends on which of them is fast."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\nif 'edgewam.profiles.probe_process' in sys.orig_argv: time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with started("doctor", "--limit", "0.1", "--json") as family:
        out, err = family.process.communicate(timeout=30)
        assert family.none_left()
    found = json.loads(out)
    assert family.process.returncode == 1 and not found["ok"]  # the main job is not shown to work
    assert found["backends"]["eager"]["run"]["ok"] is None and "--limit 30" in found["backends"]["eager"]["run"]["reason"]
    assert not any(answer["ok"] for answer in (found["bundle"], *found["render"].values()))
    assert "edgewam doctor" in found["problems"][0]["mend"] and "?" in err

"""`edgewam compile` for a card that is not here: what it builds, what it says of it, and what it refuses before any work."""

from __future__ import annotations

import pytest

from edgewam.runtime import tensorrt_api
from tests.cli.command import here

ARGUMENTS = ("--backend", "tensorrt", "--precision", "bf16", "--layer-groups", 2)
needs_rtx = pytest.mark.skipif(not tensorrt_api.is_installed("rtx"), reason="tensorrt_rtx is not installed")


@needs_rtx
def test_the_shipped_student_becomes_engines_for_a_card_that_is_not_here(shipped, tmp_path):
    out = tmp_path / "bundle"
    done = here("compile", shipped / "student", out, "--target", "rtx-5090", *ARGUMENTS, "--json").ok()
    assert "built for NVIDIA GeForce RTX 5090, where it proves itself" in done.err and "nothing ran here" in done.err
    assert "programs" not in done.json["measured"]
    found = here("inspect", out, "--json").ok()
    config = found.json["config"]
    assert config["device"]["sm"] == "sm_120" and config["precision"] == "bf16" and "rotate_pairs" in config["rewrites"]
    engines = {entry["stage"]["name"]: entry["record"]["read_back"] for entry in config["stages"]}
    assert {"planner_0_2", "planner_2_4", "denoise", "router"} <= set(engines)
    for name in ("planner_0_2", "planner_2_4", "denoise"):
        assert set(engines[name]["gemms"]) == {"bfloat16"} and not engines[name]["attentions"]["unfused"], name
    assert engines["denoise"]["kernels_per_block"] <= 16
    assert "bfloat16" in found.err and "attentions fused" in found.err
    refused = here("profile", out)
    assert refused.code == 1 and "tensorrt" in refused.err and "Traceback" not in refused.err


def test_a_dry_run_shows_the_layer_groups_and_builds_nothing(shipped, tmp_path):
    done = here("compile", shipped / "student", tmp_path / "b", "--target", "thor", *ARGUMENTS, "--dry-run", "--json").ok()
    assert {"planner_0_2", "planner_2_4"} <= set(done.json["stages"]) and "planner" not in done.json["stages"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--backend", "tensorrt", "--target", "rtx5090"), "Unknown target 'rtx5090'"),
        (("--backend", "tensorrt", "--target", "rtx5090", "--precision", "bf16"), "Unknown target 'rtx5090'"),
        (("--backend", "tensorrt"), "name it"),
        (("--backend", "onnxruntime", "--device", "cuda"), "computes on the processor"),
        (("--backend", "eager", "--device", "foo"), "Unknown device 'foo'"),
        (("--backend", "eager", "--target", "rtx-5090"), "builds for no particular device"),
        (("--backend", "onnxruntime", "--precision", "bf16"), "computes in float32"),
        (("--backend", "eager", "--layer-groups", "9"), "has 1 to 4 groups, not 9"),
        (("--backend", "inductor", "--device", "cuda:7"), "CUDA"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(shipped, tmp_path, arguments, words):
    refused = here("compile", shipped / "student", tmp_path / "b", *arguments)
    assert refused.code == 1 and words in refused.err and "Traceback" not in refused.err, refused.err
    assert not list(tmp_path.iterdir())

"""The stored builds of full-size engines show what they are kept for."""

import argparse
import itertools
import json

import pytest

from benchmarks.results import RESULTS, ROOT

pytest.importorskip("torch", reason="needs the extra train")

from benchmarks.tensorrt_builds import NUM_GROUPS, STAGES, TARGETS, faults, todo

BUILDS = json.loads((RESULTS / "amd-epyc" / "tensorrt_builds.json").read_text())["builds"]


def test_every_stage_precision_and_target_is_stored():
    asked = argparse.Namespace(target=",".join(TARGETS), only=None, precision=None)
    known = {f"{stage} {precision} {target}" for stage, precision, targets in todo({}, asked) for target in targets}
    assert known == set(BUILDS)
    for stage, precisions in {**STAGES, "small/denoise": ("bfloat16", "float16", "fp8", "int8")}.items():
        assert known >= {f"{stage} {precision} {target}" for precision in precisions for target in TARGETS}
    missing = {name: build for name, build in BUILDS.items() if name != "small/router int8 rtx-4090"}
    assert todo(missing, asked) == [("small/router", "int8", ["rtx-4090"])]


def test_formats_fusions_and_memory_are_as_asked():
    assert faults(BUILDS) == []


@pytest.mark.parametrize("target", TARGETS)
def test_the_denoise_step_was_built_in_every_precision(target):
    for precision in STAGES["denoise"]:
        build = BUILDS[f"denoise {precision} {target}"]
        assert build["read_back"]["attentions"]["fused"] == 60 and build["read_back"]["blocks"] == 30
    eight, half = (BUILDS[f"denoise {precision} {target}"]["read_back"]["weight_bytes"] for precision in ("fp8", "bfloat16"))
    assert eight < 0.51 * half, "8-bit weights with their scales"


@pytest.mark.parametrize("change", ["formats", "unknown", "attentions", "memory"])
def test_a_build_that_misses_is_a_fault(change):
    build = json.loads(json.dumps(BUILDS["denoise fp8 rtx-5090"]))
    if change == "formats":
        build["read_back"]["formats"] = {"bfloat16": 3, "fp8": 179}
    elif change == "unknown":
        build["read_back"]["formats"] = {"fp8": 179, "unknown": 3}
    elif change == "attentions":
        build["read_back"]["attentions"] = {"found": 60, "fused": 59, "unfused": ["node_softmax"]}
    else:
        build["peak_memory_bytes"] = 15e9
    (fault,) = faults({"denoise fp8 rtx-5090": build})
    assert fault.startswith("denoise fp8 rtx-5090")


def test_one_middle_group_stands_for_all_of_them():
    groups = [name for name in STAGES if name.startswith("planner_")]
    assert groups == ["planner_0_5", "planner_5_10", "planner_25_30"] and NUM_GROUPS == 6


def test_the_table_of_the_docs_is_what_was_built():
    lines = (ROOT / "docs" / "hardware.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| stage | weights"))
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :]))
    assert len(rows) >= 5
    for row in rows:
        stage, *numbers, fused = (cell.strip() for cell in row.strip("|").split("|"))
        for precision, weights, kernels in zip(("bfloat16", "fp8", "int8"), numbers[:3], numbers[3:], strict=True):
            if weights == "-":
                continue
            found = BUILDS[f"{stage} {precision} {TARGETS[0]}"]["read_back"]
            assert (f"{found['weight_bytes'] / 1e6:.0f}", str(found["kernels"])) == (weights, kernels), (stage, precision)
            assert f"{found['attentions']['fused']} of {found['attentions']['found']}" == fused

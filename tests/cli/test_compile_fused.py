"""`edgewam compile --backend fused` of the shipped policy on the processor: interpreted, end to end."""

from __future__ import annotations

import pytest

from edgewam.runtime.backends import fused
from tests.cli.command import here

needs_triton = pytest.mark.skipif(not fused.supports().ok, reason=fused.supports().reason)


@needs_triton
@pytest.mark.timeout(900)  # 40 s of one processor, interpreted
def test_the_shipped_student_becomes_recipes_of_kernels(shipped, tmp_path):
    out = tmp_path / "bundle"
    done = here("compile", shipped / "student", out, "--backend", "fused", "--steps", "2", "--json").ok()
    assert "a proof of what they compute" in done.err and "--device cuda" in done.err
    assert done.json["measured"]["programs"]["act"]["relative"] < 1e-4
    found = here("inspect", out, "--json").ok()
    records = {entry["stage"]["name"]: entry["record"] for entry in found.json["config"]["stages"]}
    assert {name for name, record in records.items() if "recipe" in record} == {"planner", "router", "state", "denoise"}
    assert records["denoise"]["kernels"]["linear"] == 4 * 6 + 2
    assert "rotate_pairs" in found.json["config"]["rewrites"]
    assert "interpreter" in found.err and "image_encoder: PyTorch runs all of it: it is made of convolutions" in found.err
    assert "planner: PyTorch runs planner.patches.pt2: " in found.err


@needs_triton
def test_a_dry_run_says_that_it_would_be_interpreted_and_writes_nothing(shipped, tmp_path):
    done = here("compile", shipped / "student", tmp_path / "b", "--backend", "fused", "--dry-run", "--json").ok()
    assert "interpreter" in done.err and "denoise" in done.json["stages"] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--target", "rtx-5090"), "tunes its kernels on the card"), (("--device", "tpu"), "tpu")],
)
def test_what_cannot_be_is_refused_with_what_can(shipped, tmp_path, arguments, words):
    refused = here("compile", shipped / "student", tmp_path / "b", "--backend", "fused", *arguments)
    assert refused.code == 1 and words in refused.err and "Traceback" not in refused.err, refused.err
    assert not list(tmp_path.iterdir())

"""A rewrite that is wrong is wrong in the bundle and in its rewritten partner alike; gate 2 judges against the plain policy."""

from __future__ import annotations

import pytest

from edgewam.compile import rewritten_layers, rewritten_router, rewritten_stage
from edgewam.compile.compile import compile_bundle
from edgewam.core.errors import GateError
from edgewam.recipes.deploy import compile_plan
from edgewam.recipes.validation import validate_against

right = rewritten_stage.fold_affine


def wrong(layer, gain, shift, scale=1.0):
    """The fold with weights at seven tenths."""
    folded = right(layer, gain, shift, scale)
    folded.weight.data *= 0.7
    return folded


@pytest.mark.parametrize("is_wrong", [False, True])
def test_a_wrong_fold_fails_gate_2_and_a_right_one_passes_both(dataset, shipped, tmp_path, monkeypatch, is_wrong):
    if is_wrong:
        for module in (rewritten_stage, rewritten_layers, rewritten_router):
            monkeypatch.setattr(module, "fold_affine", wrong, raising=False)
    student = shipped / "student"
    path = compile_bundle(compile_plan(student, "eager", threads=1, rewrites=True, layer_groups=2), tmp_path / "bundle")
    report = validate_against(path, student, dataset, num_frames=2, threads=1)
    assert report.stages is not None and report.stages.first_failure is None
    if is_wrong:
        with pytest.raises(GateError, match="Excess error ratio"):
            report.require()
    else:
        report.require()

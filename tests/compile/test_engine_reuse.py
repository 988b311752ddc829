"""An engine is taken over when all it was built from is the same, and built again when one weight, target or version is not."""

from dataclasses import replace

import pytest
import torch

from edgewam.compile import engine_reuse
from edgewam.compile.backends import tensorrt
from edgewam.compile.build_options import BuildOptions
from edgewam.compile.compile import compile_bundle
from edgewam.compile.engine_reuse import engine_key
from edgewam.core.artifacts import read_manifest
from edgewam.runtime import tensorrt_api
from edgewam.runtime.bundle import STAGES
from tests.compile.toy import toy_plan

pytestmark = pytest.mark.skipif(not tensorrt_api.is_installed("rtx"), reason="tensorrt_rtx is not installed")


def plan(target="rtx-5090", weight=None):
    made = toy_plan("tensorrt", build_options=BuildOptions(target=target))
    if weight is not None:
        parameters = [p for p in made.stages["step"].function.parameters() if p.dim() == 2]
        with torch.no_grad():
            parameters[0][0, 0] += weight
    return made


def reused(path):
    return {e["stage"]["name"]: e["record"].get("reused", False) for e in read_manifest(path).config["stages"]}


def test_the_same_plan_builds_nothing_again_and_another_weight_only_its_stage(tmp_path, monkeypatch):
    path = compile_bundle(plan(), tmp_path / "bundle")
    before = read_manifest(path)
    assert not any(reused(path).values())
    with monkeypatch.context() as patch:
        patch.setattr(tensorrt, "build_graph", lambda *arguments: pytest.fail("an engine was built again"))
        compile_bundle(plan(), path)
    assert all(reused(path).values()) and read_manifest(path).files == before.files
    compile_bundle(plan(weight=1e-3), path)
    changed = [name for name, taken in reused(path).items() if not taken]
    assert "step" in changed and len(changed) < len(before.config["stages"])
    compile_bundle(plan(target="rtx-4090"), path)
    assert not any(reused(path).values())


def test_a_damaged_engine_is_built_again(tmp_path):
    path = compile_bundle(plan(), tmp_path / "bundle")
    (path / STAGES / "step.engine").write_bytes(b"not an engine")
    compile_bundle(plan(), path)
    assert not reused(path)["step"] and all(taken for name, taken in reused(path).items() if name != "step")


def test_the_key_is_of_every_byte_and_of_every_fact(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(1 << 17))
    files = [tmp_path / "a", tmp_path / "b"]
    key = engine_key(files, "sm_120", "1.7.1")
    assert key == engine_key(reversed(files), "sm_120", "1.7.1") != engine_key(files, "sm_120", "1.7.2")
    (tmp_path / "b").write_bytes(bytes((1 << 17) - 1) + b"\1")  # the last byte
    assert engine_key(files, "sm_120", "1.7.1") != key


def test_what_is_no_bundle_has_no_engines(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    assert engine_reuse.taken_from(tmp_path, "step", "key", tmp_path) is None
    assert engine_reuse.taken_from(None, "step", "key", tmp_path) is None
    assert replace(BuildOptions(), reuse=tmp_path).reuse == tmp_path

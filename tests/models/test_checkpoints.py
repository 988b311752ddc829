"""Released files load and round-trip bit for bit; broken ones say what is wrong; full-size keys are the released ones."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgewam.core.errors import ArtifactError
from edgewam.models import aha_wam, checkpoints
from tests.models import aha_wam_golden as golden

MANIFEST = Path(__file__).parents[1] / "golden" / "manifests" / "manifest_ahawam_full.json"
RELEASES = ("checkpoint_ahawam", "checkpoint_ahawam_student_ode")


def test_full_size_keys_and_shapes_are_those_of_the_released_checkpoint():
    with torch.device("meta"):
        model = aha_wam.build(aha_wam.full())
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == {name: shape for name, (shape, _) in json.loads(MANIFEST.read_text()).items()}


@pytest.mark.parametrize("name", RELEASES)
def test_a_released_file_round_trips_bit_for_bit(name, tmp_path):
    release = checkpoints.read_release(golden.FOLDER / f"{name}.pt")
    stored = next(iter(release.tensors.values())).dtype
    model = aha_wam.load(golden.FOLDER / f"{name}.pt", golden.config(), stored)
    checkpoints.write_release(model, tmp_path / "again.pt", release.extra)
    again = checkpoints.read_release(tmp_path / "again.pt")
    assert again.extra == release.extra and set(again.tensors) == set(release.tensors)
    assert all(torch.equal(again.tensors[key], value) for key, value in release.tensors.items())
    if name.endswith("ode"):
        trajectory = golden.arrays("distill_loss")
        assert again.extra["ode_metadata"]["teacher_num_inference_steps"] == len(trajectory["teacher.timesteps"])
        assert again.extra["ode_metadata"]["teacher_capture_step_indices"][:-1] == trajectory["anchor_candidates_steps"].tolist()


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16"])
def test_our_format_round_trips_in_every_storage_dtype(storage, tmp_path):
    model = golden.model()
    aha_wam.save(model, tmp_path / "model", storage, {"task": "golden"})
    again = aha_wam.load(tmp_path / "model")
    assert again.config == model.config and next(again.parameters()).dtype == torch.float32
    for (name, mine), (_, theirs) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(mine.to(checkpoints.STORAGE[storage]).float(), theirs), name
    assert checkpoints.read(tmp_path / "model").metadata == {"task": "golden"}
    if storage == "float16":
        size = (tmp_path / "model" / checkpoints.WEIGHTS).stat().st_size
        assert size < 2.1 * sum(p.numel() for p in model.parameters()) + 100_000


def test_a_student_stores_what_differs_and_reads_the_rest_from_its_teacher(tmp_path):
    teacher, student = golden.model(), golden.model("checkpoint_ahawam_student_ode")
    aha_wam.save(teacher, tmp_path / "teacher", "float16")
    aha_wam.save(student, tmp_path / "student", "float16", base=tmp_path / "teacher")
    aha_wam.save(student, tmp_path / "whole", "float16")
    whole, loaded = aha_wam.load(tmp_path / "whole").state_dict(), aha_wam.load(tmp_path / "student").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in whole.items())
    half = {name: tensor.half() for name, tensor in teacher.state_dict().items()}
    differing = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor.half(), half[name])}
    assert differing and all(name.startswith(("mot.mixtures.action.", "mot.action_branch_embedding")) for name in differing)
    assert set(load_file(tmp_path / "student" / checkpoints.WEIGHTS)) == differing
    sizes = [(tmp_path / name / checkpoints.WEIGHTS).stat().st_size for name in ("student", "whole")]
    saved = 2 * sum(tensor.numel() for name, tensor in half.items() if name not in differing)  # bytes of what both share
    assert sizes[0] <= sizes[1] - saved
    aha_wam.save(student, tmp_path / "teacher", "float16")
    with pytest.raises(ArtifactError, match="saved on top of"):
        aha_wam.load(tmp_path / "student")
    (tmp_path / "teacher" / checkpoints.WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match="Copy it there too"):
        aha_wam.load(tmp_path / "student")


def test_a_single_branch_row_becomes_row_one_and_other_query_counts_are_interpolated():
    model, release = golden.model(), checkpoints.read_release(golden.FOLDER / "checkpoint_ahawam.pt")
    tensors = dict(release.tensors)
    branch, queries = tensors["mot.action_branch_embedding"], tensors["chunk_obs_query_encoder.base_queries"]
    tensors["mot.action_branch_embedding"] = branch[1:]
    tensors["chunk_obs_query_encoder.base_queries"] = queries.repeat_interleave(2, dim=2)
    with pytest.warns(UserWarning) as caught:
        checkpoints.load_release(model, checkpoints.Release(tensors))
    assert len(caught) == 2 and torch.equal(model.branch, branch[1])
    torch.testing.assert_close(model.chunk_obs_query_encoder.base_queries, queries)  # halves of pairs of equal rows


def test_unused_tensors_are_named_and_missing_ones_refused():
    release = checkpoints.read_release(golden.FOLDER / "checkpoint_ahawam.pt")
    with pytest.warns(UserWarning, match="does not use: .*mot.more"):
        checkpoints.load_release(golden.model(), checkpoints.Release({**release.tensors, "mot.more": torch.zeros(1)}))
    kept = {key: value for key, value in release.tensors.items() if not key.startswith("proprio_encoder")}
    with pytest.raises(ArtifactError, match=r"'proprio_encoder\.weight' is missing"):
        checkpoints.load_release(golden.model(), checkpoints.Release(kept))


def test_wrong_shapes_name_both_shapes():
    with pytest.raises(ArtifactError, match=r"is \[.*\] but the model has \[.*Use the configuration"):
        aha_wam.load(golden.FOLDER / "checkpoint_ahawam.pt", aha_wam.small())


def test_truncated_foreign_and_missing_files_are_refused(tmp_path):
    whole = (golden.FOLDER / "checkpoint_ahawam.pt").read_bytes()
    cut = tmp_path / "cut.pt"
    for length in (0, 10, len(whole) // 2, len(whole) - 100):
        cut.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="truncated"):
            aha_wam.load(cut, golden.config())
    torch.save({"dit": {"a": torch.zeros(1)}}, cut)
    with pytest.raises(ArtifactError, match="legacy video-only"):
        aha_wam.load(cut, golden.config())
    torch.save([1, 2], cut)
    with pytest.raises(ArtifactError, match="holds a list"):
        aha_wam.load(cut, golden.config())
    with pytest.raises(ArtifactError, match="no checkpoint"):
        aha_wam.load(tmp_path / "nowhere.pt")


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"mot": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ArtifactError):
        aha_wam.load(tmp_path / "evil.pt")


def test_damaged_directories_are_refused(tmp_path):
    aha_wam.save(golden.model(), tmp_path, "float16")
    weights = tmp_path / checkpoints.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ArtifactError, match="truncated or damaged"):
        aha_wam.load(tmp_path)
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"lacks 'model\.safetensors'"):
        aha_wam.load(tmp_path)
    weights.write_bytes(b"\x00" * 64)
    (tmp_path / checkpoints.SIZES).write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        aha_wam.load(tmp_path)


def test_another_family_or_version_is_refused(tmp_path):
    model = golden.model()
    checkpoints.save(model, tmp_path, family="other", config=model.config.to_json())
    with pytest.raises(ArtifactError, match="family 'other'"):
        aha_wam.load(tmp_path)
    checkpoints.save(model, tmp_path, family="aha_wam", config={**model.config.to_json(), "flux": 1})
    with pytest.raises(ArtifactError, match="another version"):
        aha_wam.load(tmp_path)
    with pytest.raises(ValueError, match="Available: float32"):
        aha_wam.save(model, tmp_path, "int3")

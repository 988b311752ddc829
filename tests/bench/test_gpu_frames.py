"""Frames for machines without a video decoder come back bit for bit, and the parity job says what it compared."""

import numpy as np
import pytest
import torch

from benchmarks.gpu import packed_frames
from benchmarks.gpu.jobs import find_jobs
from benchmarks.gpu.packed_frames import collect_frames, read_frames, write_frames
from benchmarks.gpu.vae_parity import _compare, smooth_frames
from benchmarks.gpu.worker import work
from edgewam.core.errors import EdgewamError
from tests.data.synthetic import dataset_of, episode

torch.set_num_threads(1)


def frames(count, seed=0):
    return smooth_frames(count, (192, 160), seed).images


def test_packed_frames_are_the_frames(tmp_path):
    images = frames(7)
    write_frames(tmp_path / "f.npz", images, np.array([0, 3]), "two episodes")
    back = read_frames(tmp_path / "f.npz")
    np.testing.assert_array_equal(back.images, images)
    assert back.origin == "two episodes" and back.real


def test_neighbours_that_are_alike_pack_small(tmp_path):
    still = np.repeat(frames(1), 50, 0)
    assert write_frames(tmp_path / "f.npz", still, np.array([0]), "") < still.nbytes / 20


def test_a_file_that_is_too_large_to_carry_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(packed_frames, "MAX_MB", 0.01)
    with pytest.raises(EdgewamError, match="Ask for fewer frames"):
        write_frames(tmp_path / "f.npz", frames(2), np.array([0]), "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive"])
def test_a_broken_file_says_how_to_make_a_new_one(tmp_path, content):
    (tmp_path / "f.npz").write_bytes(content)
    with pytest.raises(EdgewamError, match="Pack it again"):
        read_frames(tmp_path / "f.npz")


def test_frames_are_taken_evenly_from_all_episodes_of_a_dataset(tmp_path):
    pytest.importorskip("av")
    dataset_of(tmp_path / "data", [episode(length=40, seed=seed) for seed in range(3)])
    images, starts, origin = collect_frames(tmp_path / "data", 10)
    assert images.shape == (10, 192, 160, 3) and starts.tolist() in ([0, 3, 7], [0, 3, 6]) and origin.startswith("3 episodes")
    with pytest.raises(EdgewamError, match="Collect more episodes"):
        collect_frames(tmp_path / "data", 1000)


def test_the_job_compares_carried_frames_and_meets_its_gate(tmp_path, capsys):
    write_frames(tmp_path / "f.npz", frames(3), np.array([0]), "three smooth ones")
    (job,) = find_jobs(["vae_parity"])
    job = job.with_data(tmp_path / "f.npz")
    params = {**job.params, "compilers": ["eager"], "precisions": ["bfloat16"], "n": 2}
    section = work(type(job)(**{**vars(job), "params": params}), "cpu", tmp_path / "sections.json")["bfloat16_eager"]
    assert section.figures["frames"] == 3 and section.figures["real"] and "three smooth ones" in section.contract.notes
    assert section.figures["gate_passed"] and 0.9995 < section.figures["cosine_min"] <= section.figures["cosine_mean"] < 1
    assert job.key() != find_jobs(["vae_parity"])[0].key()


def test_the_gate_sees_one_bad_frame_and_one_nan():
    reference = [torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(i)) for i in range(50)]
    assert _compare(iter(reference), reference)["gate_passed"]
    bad = [*reference[:-1], reference[-1] + 0.1]
    found = _compare(iter(bad), reference)
    assert not found["gate_passed"] and found["cosine_min"] < 0.9995 and found["max_abs"] == pytest.approx(0.1)
    nan = reference[0].clone()
    nan[0, 0, 0] = float("nan")
    found = _compare(iter([nan, *reference[1:]]), reference)
    assert found["not_finite"] == 1 and not found["gate_passed"]

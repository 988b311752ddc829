"""The loader benchmark: what it writes holds every part and figure, and the figures follow from each other."""

import itertools

import pytest

from benchmarks.loader import KINDS, footage, main
from benchmarks.results import read_record


def test_a_run_writes_parts_rates_and_what_a_gpu_needs(tmp_path, capsys):
    arguments = "--kind h264_240x320 --batches 2 --episodes 2 --steps 70 --batch-size 1 --processes 0 --step-s 0.25"
    assert main([*arguments.split(), "--out", str(tmp_path)]) == 0
    record = read_record(tmp_path / "loader.json")
    section = record.sections["h264_240x320"]
    times, figures = section.timings, section.figures
    assert {timing.n for timing in times.values()} == {2}
    assert times["batch"].mean_ms == pytest.approx(sum(times[name].mean_ms for name in ("arrays", "decode", "compose")))
    assert figures["needed_windows_per_s_per_gpu"] == 4
    assert figures["needed_processes_per_gpu"] == pytest.approx(4 / figures["windows_per_s_0_processes"])
    # 9 clip frames, up to 6 of history, each from three cameras; frames past the end are one
    canvases = figures["last_batch_camera_frames"] / 3
    assert 1 <= canvases <= 15
    assert figures["last_batch_canvas_mb"] == pytest.approx(canvases * 384 * 320 * 3 * 2 / 1e6)
    assert section.contract.precision == "bfloat16"
    assert "decode ms, p50" in capsys.readouterr().out


def test_made_pictures_move_and_stay_within_the_scene():
    stored = KINDS["h264_240x320"]
    film = footage(stored, 0)
    frames = [film(number) for number in (0, 1, 40, 400)]
    assert {frame.shape for frame in frames} == {(stored.height, stored.width, 3)}
    assert all((a != b).any() for a, b in itertools.pairwise(frames))

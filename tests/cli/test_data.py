"""`edgewam data`: what a person and a program get to see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from edgewam.data.dataset import Dataset
from edgewam.data.stats import read_stats
from tests.cli.command import here
from tests.data.robotwin import small_episode, write_v21


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found: Path = write_v21(tmp_path / "set", [small_episode(11, 0), small_episode(30, 1)])
    return found


def test_check_exits_1_and_names_each_fault_once_something_is_wrong(path):
    done = here("data", "check", path, "--full", "--json").ok()
    assert done.json["problems"] == [] and "No faults." in done.err
    video = path / "videos/chunk-000/observation.images.cam_high/episode_000001.mp4"
    video.unlink()
    done = here("data", "check", path, "--json")
    assert done.code == 1 and "Traceback" not in done.err
    assert f"FAULT: Video '{video}' is missing. Copy the dataset" in " ".join(done.err.split())
    assert len(done.json["problems"]) == 1


def test_check_of_no_dataset_says_what_it_is(tmp_path):
    done = here("data", "check", tmp_path / "nothing", "--json")
    assert done.code == 1 and "does not exist" in done.json["problems"][0]


def test_names_can_be_given_and_stored(tmp_path):
    path = write_v21(tmp_path / "set", [small_episode(5)], state_key="observation.qpos", prefix="cameras.")
    done = here("data", "check", path)
    assert done.code == 1 and "observation.qpos (14)" in done.err and "--state KEY" in done.err
    here("data", "check", path, "--state", "observation.qpos", "--camera", "front=cameras.cam_high", "--save-keys").ok()
    assert Dataset.open(path).cameras == ("front", "cam_left_wrist", "cam_right_wrist")
    nothing = here("data", "check", path, "--save-keys")
    assert nothing.code == 1 and "no names to store" in nothing.err
    wrong = here("data", "check", path, "--camera", "front")
    assert wrong.code == 1 and "Write NAME=KEY" in wrong.err


def test_stats_writes_the_released_form(path, tmp_path):
    here("data", "stats", path, tmp_path / "dataset_stats.json", "--std-floor", "0").ok()
    data = json.loads((tmp_path / "dataset_stats.json").read_text())
    assert set(data["action"]["default"]) == {f"global_{name}" for name in ("mean", "std", "min", "max", "q01", "q99")}
    assert read_stats(tmp_path / "dataset_stats.json").state.mean.shape == (14,)


def test_view_writes_a_picture_or_a_page(path, tmp_path):
    done = here("data", "view", path, tmp_path / "sheet.png", "--episode", "1", "--pictures", "3", "--json").ok()
    assert done.json["steps"] == [0, 14, 29]
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == (3 * 326 + 6, 384 + 28)
    here("data", "view", path, tmp_path / "sheet.html").ok()
    refused = here("data", "view", path, tmp_path / "sheet.pdf")
    assert refused.code == 1 and "neither .png nor .html" in refused.err and not (tmp_path / "sheet.pdf").exists()

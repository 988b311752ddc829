import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgewam.data.check import check_dataset
from edgewam.data.dataset import Dataset
from edgewam.data.join import join
from tests.data.robotwin import encode, small_episode, write_v21
from tests.data.synthetic import dataset_of, three_episodes

EPISODES = [small_episode(length, seed) for seed, length in enumerate((11, 30, 7))]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return Dataset.open(write_v21(tmp_path_factory.mktemp("checked") / "set", EPISODES))


@pytest.fixture
def copy(good, tmp_path):
    return shutil.copytree(good.path, tmp_path / "copy")


def video(root, number, camera="cam_high"):
    return root / f"videos/chunk-000/observation.images.{camera}/episode_{number:06d}.mp4"


def table(root, number):
    return root / f"data/chunk-000/episode_{number:06d}.parquet"


def change(path, name, values):
    found = pq.read_table(path)
    pq.write_table(found.set_column(found.schema.get_field_index(name), name, values), path)


def test_a_whole_dataset_has_no_faults_and_its_facts_are_told(good):
    seen = []
    found = check_dataset(good.path, full=True, progress=lambda done, total: seen.append((done, total)))
    assert (found.problems, found.notes) == ([], [])
    assert {name: found.facts[name] for name in ("layout", "episodes", "steps", "shortest", "longest", "fps")} == {
        "layout": "v2.1", "episodes": 3, "steps": 48, "shortest": 7, "longest": 30, "fps": 25,
    }  # fmt: skip
    assert found.facts["cameras"]["cam_left_wrist"] == [24, 32, 3]
    assert sorted(seen)[-1] == (18, 18)


def test_own_layout_is_checked_too(tmp_path):
    found = check_dataset(dataset_of(tmp_path / "set", three_episodes()).path, full=True)
    assert found.problems == [] and found.facts["layout"] == "v3.0"


def test_every_fault_is_named_and_not_only_the_first(copy):
    video(copy, 0).unlink()
    content = video(copy, 1).read_bytes()
    video(copy, 1).write_bytes(content[: len(content) // 2])
    table(copy, 1).unlink()
    shutil.copy(video(copy, 0, "cam_left_wrist"), video(copy, 2, "cam_left_wrist"))
    actions = np.repeat(np.float32([np.nan]), 14 * 7)
    change(table(copy, 2), "action.default", pa.FixedSizeListArray.from_arrays(pa.array(actions), 14))
    problems = check_dataset(copy).problems
    assert len(problems) == 5
    for number, (file, what) in enumerate([
        ("episode_000001.parquet", "is missing"),
        ("episode_000002.parquet', episode 2, column 'action.default'", "7 rows are not finite"),
        ("cam_high/episode_000000.mp4", "is missing"),
        ("cam_high/episode_000001.mp4", "truncated"),
        ("cam_left_wrist/episode_000002.mp4", "has 11 frames, its episode 7 steps"),
    ]):  # fmt: skip
        assert file in problems[number] and what in problems[number]


def test_faults_of_our_own_layout_are_listed_by_file(tmp_path):
    root = dataset_of(tmp_path / "set", three_episodes()).path
    for camera in ("cam_high", "cam_left_wrist"):
        (root / f"videos/observation.images.{camera}/chunk-000/file-000.mp4").write_bytes(b"not a video")
    problems = check_dataset(root).problems
    assert [("cam_high" in problem, "cam_left_wrist" in problem) for problem in problems] == [(True, False), (False, True)]


def flip(path):
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat") + 4
    middle = begin + (content.index(b"moov", begin) - begin) // 2
    for place in range(middle, middle + 40):
        content[place] ^= 0xA5
    path.write_bytes(content)


def test_damage_in_the_middle_of_a_video_is_found(copy):
    flip(video(copy, 1))
    assert Dataset.open(copy).num_episodes == 3, "the file's index is whole"
    assert [p for p in check_dataset(copy, full=True).problems if "cam_high/episode_000001.mp4' is damaged" in p]


def test_timestamps_that_do_not_follow_the_rate_are_named(copy):
    change(table(copy, 1), "timestamp", pa.array((np.arange(30) / 20).astype(np.float32)))
    assert len(problems := check_dataset(copy).problems) == 1
    assert "episode_000001.parquet', episode 1, step 1: the timestamp is +0.25 steps off frame_index / fps" in problems[0]


def test_pictures_of_another_size_are_named(copy):
    encode(video(copy, 2), small_episode(7, size=(32, 32)).images["cam_high"], 25)
    assert len(problems := check_dataset(copy).problems) == 1
    assert "cam_high/episode_000002.mp4' has pictures of [32, 32, 3], meta/info.json says [24, 32, 3]" in problems[0]


def test_videos_of_another_rate_are_named(copy):
    encode(video(copy, 2), EPISODES[2].images["cam_high"], 50)
    assert len(problems := check_dataset(copy).problems) == 1
    assert "cam_high/episode_000002.mp4' shows 7 frames in 0.14 s (50.0 a second), the dataset has 25" in problems[0]


def test_numbers_that_never_move_and_unused_tasks_are_noted(copy):
    for number, length in enumerate((11, 30, 7)):
        still = np.ones(14 * length, np.float32)
        change(table(copy, number), "action.default", pa.FixedSizeListArray.from_arrays(pa.array(still), 14))
    with (copy / "meta/tasks.jsonl").open("a") as file:
        file.write(json.dumps({"task_index": 2, "task": "Dance."}) + "\n")
    found = check_dataset(copy)
    assert found.problems == []
    assert found.notes[0].startswith("These numbers of the action never move: joint_0, joint_1")
    assert found.notes[1] == "No episode has the task 'Dance.'."


def test_a_list_of_datasets_is_checked_part_by_part(tmp_path):
    parts = [write_v21(tmp_path / str(seed), [small_episode(6, seed)]) for seed in range(2)]
    join(tmp_path / "both", parts)
    assert check_dataset(tmp_path / "both").facts["episodes"] == 2
    video(parts[1], 0).unlink()
    found = check_dataset(tmp_path / "both")
    assert len(found.problems) == 1 and "1/videos" in found.problems[0] and "is missing" in found.problems[0]

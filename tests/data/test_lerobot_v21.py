import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgewam.core.errors import ArtifactError
from edgewam.data.dataset import Dataset
from edgewam.data.key_map import KeyMap
from tests.data import robotwin
from tests.data.robotwin import CAMERAS, TASKS, small_episode, write_lines, write_v21
from tests.data.synthetic import psnr

# x264 at constant rate factor 20 in 4:2:0 gave 30.0 dB at worst on these tiny saturated pictures, the step before 19.3 at best
WORST_PSNR_DB = 27.0
EPISODES = [small_episode(length, seed) for seed, length in enumerate((11, 30, 7))]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    # two episodes a chunk: the third one lies in another directory
    return Dataset.open(write_v21(tmp_path_factory.mktemp("v21") / "set", EPISODES, chunks_size=2))


@pytest.fixture
def copy(good, tmp_path):
    shutil.copytree(good.path, tmp_path / "copy")
    return tmp_path / "copy"


def test_numbers_tasks_and_names_come_back(good):
    assert good.lengths.tolist() == [11, 30, 7]
    assert (good.fps, good.camera_hz, good.tasks, good.task(1), good.task(2)) == (25, 25, TASKS, TASKS[1], TASKS[0])
    assert good.cameras == CAMERAS
    assert (good.state_dim, good.action_dim) == (14, 14)
    assert good.features["observation.state"]["names"] == [f"joint_{number}" for number in range(14)]
    for number, one in enumerate(EPISODES):
        np.testing.assert_array_equal(good.states(number), one.states)
        np.testing.assert_array_equal(good.actions(number), one.actions)


@pytest.mark.parametrize("camera", CAMERAS)
def test_every_frame_of_every_episode_comes_back(good, camera):
    for number, one in enumerate(EPISODES):
        frames = good.frames(number, camera, np.arange(len(one)))
        assert psnr(frames, one.images[camera]).min() > WORST_PSNR_DB
        assert psnr(frames[1:], one.images[camera][:-1]).max() < WORST_PSNR_DB - 5, "not the step before"


def test_frames_with_b_frames_and_long_groups_are_found_in_any_order(good):
    whole = good.frames(1, "cam_high", np.arange(30))
    order = [29, 0, 17, 17, 1, 28, 9]
    np.testing.assert_array_equal(good.frames(1, "cam_high", order), whole[order])


def test_digest_follows_the_content(good, tmp_path):
    again = Dataset.open(shutil.copytree(good.path, tmp_path / "again"))
    other = Dataset.open(write_v21(tmp_path / "other", EPISODES[:2], chunks_size=2))
    assert good.digest == again.digest == Dataset.open(good.path).digest != other.digest


def test_plain_names_and_names_that_only_a_key_map_knows(tmp_path):
    path = write_v21(tmp_path / "set", EPISODES[2:], state_key="observation.qpos", action_key="actions", prefix="")
    with pytest.raises(ArtifactError, match=r"no state named .*observation\.qpos \(14\).*--state KEY"):
        Dataset.open(path)
    keys = KeyMap(state="observation.qpos", cameras={"front": "cam_high"})
    found = Dataset.open(path, keys)
    assert found.cameras == ("front", "cam_left_wrist", "cam_right_wrist")
    np.testing.assert_array_equal(found.states(0), EPISODES[2].states)
    keys.save(path)
    assert Dataset.open(path).cameras == found.cameras
    with pytest.raises(ArtifactError, match=r"no video cam_top\. Its videos: cam_high, cam_left_wrist"):
        Dataset.open(path, KeyMap(state="observation.qpos", cameras={"front": "cam_top"}))


def test_names_of_libero_conversions_are_known(tmp_path):
    one = small_episode(5, cameras=("image", "wrist_image"), state_dim=8, action_dim=7)
    found = Dataset.open(write_v21(tmp_path / "set", [one], fps=10, state_key="observation.state", action_key="action"))
    assert found.cameras == ("front", "wrist")
    assert (found.state_dim, found.action_dim) == (8, 7)


def parquet(root, number=1):
    return root / f"data/chunk-{number // 2:03d}/episode_{number:06d}.parquet"


def video(root, number=1):
    return root / f"videos/chunk-{number // 2:03d}/observation.images.cam_high/episode_{number:06d}.mp4"


def test_missing_files_are_named(copy):
    shutil.move(video(copy), copy / "elsewhere.mp4")
    with pytest.raises(ArtifactError, match=r"cam_high/episode_000001\.mp4' is missing"):
        Dataset.open(copy)
    shutil.move(copy / "elsewhere.mp4", video(copy))
    parquet(copy).unlink()
    with pytest.raises(ArtifactError, match=r"episode_000001\.parquet' is missing"):
        Dataset.open(copy)


def test_ragged_episodes_are_named(copy):
    shutil.copy(video(copy, 0), video(copy, 1))
    with pytest.raises(ArtifactError, match=r"episode_000001\.mp4' has 11 frames, its episode 30 steps"):
        Dataset.open(copy)
    shutil.copy(parquet(copy, 0), parquet(copy, 1))
    with pytest.raises(ArtifactError, match=r"episode_000001\.parquet' has 11 rows, 'meta/episodes.jsonl' says 30"):
        Dataset.open(copy)


def test_another_episode_of_the_same_length_is_refused(tmp_path):
    path = write_v21(tmp_path / "set", [small_episode(6, 0), small_episode(6, 1)])
    data = path / "data/chunk-000"
    shutil.copy(data / "episode_000000.parquet", data / "episode_000001.parquet")
    with pytest.raises(ArtifactError, match=r"episode_000001\.parquet' does not hold episode 1"):
        Dataset.open(path)


def test_truncated_files_are_named(copy):
    content = video(copy).read_bytes()
    video(copy).write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ArtifactError, match=r"cam_high/episode_000001\.mp4'.*truncated"):
        Dataset.open(copy)
    parquet(copy).write_bytes(parquet(copy).read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"episode_000001\.parquet'.*truncated"):
        Dataset.open(copy)


def edit_lines(path, change):
    found = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, change(found))


def test_metadata_that_disagrees_is_refused(copy):
    edit_lines(copy / "meta/episodes.jsonl", lambda found: found[:2])
    with pytest.raises(ArtifactError, match=r"episodes\.jsonl' lists 2 episodes of 41 frames, info\.json 3 of 48"):
        Dataset.open(copy)
    (copy / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 11, "tasks": []}\n{"episode_index": 1,\n')
    with pytest.raises(ArtifactError, match=r"episodes\.jsonl', line 2 is no JSON"):
        Dataset.open(copy)
    (copy / "meta/episodes.jsonl").unlink()
    with pytest.raises(ArtifactError, match=r"episodes\.jsonl' is missing"):
        Dataset.open(copy)


def test_unknown_task_is_refused(copy):
    edit_lines(copy / "meta/tasks.jsonl", lambda found: found[:1])
    with pytest.raises(ArtifactError, match=r"episode 1: task 'Stack the blocks\.' is not in 'meta/tasks\.jsonl'"):
        Dataset.open(copy)


def test_robotwin_helper_makes_three_cameras(tmp_path):
    assert robotwin.robotwin(tmp_path / "set", (5,)).frames(0, "cam_right_wrist", [4]).shape == (1, 24, 32, 3)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"features": []}, "'features' is"), ({"fps": "fast"}, "'fps' is 'fast'"), ({"chunks_size": 0}, "'chunks_size' is 0"),
        ({"fps": float("nan")}, "fps nan"), ({"total_frames": None}, "'total_frames' is None"),
        ({"data_path": "data/{nothing}.parquet"}, "no v2.1 path"), ({"features": {"action": {"shape": ["a"]}}}, "'action' is"),
        ({"data_path": "../{episode_index:06d}"}, "no path in the dataset"), ({"video_path": "/etc/passwd"}, "no path in"),
        ({"data_path": "{episode_index.__class__}"}, "no path in"), ({"data_path": "{episode_index:0999999999d}"}, "no path in"),
        ({"data_path": "{"}, "no path in"), ({"features": {"../../x": {}}}, "a feature is called '../../x'"),
    ],
)  # fmt: skip
def test_metadata_of_another_kind_is_refused(copy, changes, what):
    path = copy / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ArtifactError, match=rf"info\.json.*{re.escape(what)}"):
        Dataset.open(copy)


@pytest.mark.parametrize("column", [pa.array(["x"] * 30), pa.array([None] * 30, pa.int64()), pa.array([[1, 2]] * 30)])
def test_columns_of_another_kind_are_refused(copy, column):
    table = pq.read_table(parquet(copy))
    pq.write_table(table.set_column(table.schema.get_field_index("frame_index"), "frame_index", column), parquet(copy))
    with pytest.raises(ArtifactError, match=r"episode_000001\.parquet', column 'frame_index' does not hold a whole number"):
        Dataset.open(copy)


def test_metadata_nested_without_end_is_refused_by_name(copy):
    for name in ("meta/edgewam_keys.json", "meta/episodes.jsonl", "meta/info.json"):
        (copy / name).write_text('{"state": ' + "[" * 100_000)
        with pytest.raises(ArtifactError, match=name):
            Dataset.open(copy)
        (copy / "meta/edgewam_keys.json").unlink(missing_ok=True)
    (copy / "meta/edgewam_keys.json").write_text('{"state": 5}')
    with pytest.raises(ArtifactError, match=r"key map .*a key is no text"):
        KeyMap.stored(copy)

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgewam.core.errors import ArtifactError, ContractError
from edgewam.data.dataset import Dataset
from tests.data.synthetic import CAMERAS, TASKS, dataset_of, psnr, three_episodes

# x264 at constant rate factor 15 gave 33.2 dB at worst on these tiny saturated pictures (39 dB on the larger ones);
# the neighbouring camera frame gives 29.2 dB at best, swapped channels 16 dB
WORST_PSNR_DB = 31.0


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return dataset_of(tmp_path_factory.mktemp("dataset") / "set", three_episodes())


@pytest.fixture
def copy(good, tmp_path):
    shutil.copytree(good.path, tmp_path / "copy")
    return tmp_path / "copy"


def video(root, camera="cam_high"):
    return root / f"videos/observation.images.{camera}/chunk-000/file-000.mp4"


def edit_info(root, **changes):
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_numbers_come_back_unchanged(good):
    assert good.num_episodes == 3
    assert good.lengths.tolist() == [23, 40, 1]
    assert (good.fps, good.camera_hz, good.tasks, good.task(1)) == (50, 25, TASKS, TASKS[1])
    assert good.cameras == tuple(CAMERAS)
    for number, one in enumerate(three_episodes()):
        np.testing.assert_array_equal(good.states(number), one.states)
        np.testing.assert_array_equal(good.actions(number), one.actions)
        np.testing.assert_array_equal(good.environment_states(number), one.environment_states)


@pytest.mark.parametrize("camera", CAMERAS)
def test_every_frame_comes_back_close(good, camera):
    for number, one in enumerate(three_episodes()):
        frames = good.frames(number, camera, np.arange(len(one)))
        assert frames.dtype == np.uint8
        assert psnr(frames, one.images[camera]).min() > WORST_PSNR_DB


def test_frames_in_any_order_equal_frames_in_sequence(good):
    whole = good.frames(1, "cam_left_wrist", np.arange(40))
    order = [39, 0, 17, 17, 1, 38, 16, 30]
    np.testing.assert_array_equal(good.frames(1, "cam_left_wrist", order), whole[order])
    for step in range(40):
        np.testing.assert_array_equal(good.frames(1, "cam_left_wrist", [step])[0], whole[step])


def test_steps_between_camera_deliveries_map_to_the_delivered_frame(good):
    steps = np.arange(23)
    assert good.camera_frame(steps).tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14, 16, 16, 18, 18, 20, 20, 22]
    assert good.camera_frame(5) == 4


def test_digest_tells_datasets_apart(good, tmp_path):
    other = dataset_of(tmp_path / "other", three_episodes()[:2])
    again = dataset_of(tmp_path / "again", three_episodes())
    assert good.digest == again.digest != other.digest


def test_dataset_without_our_keys_is_read_too(copy, good):
    (copy / "manifest.json").unlink()
    info = json.loads((copy / "meta/info.json").read_text())
    del info["edgewam"]
    (copy / "meta/info.json").write_text(json.dumps(info))
    foreign = Dataset.open(copy)
    assert (foreign.camera_hz, foreign.provenance, foreign.seeds) == (50, {}, [])
    assert len(foreign.digest) == 64
    np.testing.assert_array_equal(foreign.actions(1), good.actions(1))


def test_wrong_requests_name_what_exists(good):
    with pytest.raises(ContractError, match=r"0\.\.22"):
        good.frames(0, "cam_high", [23])
    with pytest.raises(ContractError, match=r"0\.\.22"):
        good.frames(0, "cam_high", [-1])
    with pytest.raises(ContractError, match="cam_high, cam_left_wrist"):
        good.frames(0, "top", [0])
    with pytest.raises(ContractError, match=r"episodes 0\.\.2"):
        good.states(3)


def test_missing_directory_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(ArtifactError, match=r"does not exist.*edgewam collect"):
        Dataset.open(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="no LeRobot dataset"):
        Dataset.open(tmp_path)


def test_unfinished_collection_says_how_to_finish(tmp_path):
    (tmp_path / "set.parts").mkdir()
    with pytest.raises(ArtifactError, match=r"unfinished collection.*Run the same collect command again"):
        Dataset.open(tmp_path / "set")


@pytest.mark.parametrize(
    "name", ["data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"]
)
@pytest.mark.parametrize("damage", ["truncated", "missing", "foreign"])
def test_damaged_tables_are_refused_by_name(copy, name, damage):
    path = copy / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"not a table at all")
    with pytest.raises(ArtifactError, match=r"(file-000|tasks|episodes).*Copy"):
        Dataset.open(copy)


@pytest.mark.parametrize("damage", ["truncated", "missing", "foreign"])
def test_damaged_videos_are_refused_by_name(copy, damage):
    content = video(copy).read_bytes()
    video(copy).unlink()
    if damage != "missing":
        video(copy).write_bytes(content[: len(content) * 2 // 3] if damage == "truncated" else b"not a video at all")
    with pytest.raises(ArtifactError, match=r"cam_high.*file-000\.mp4.*(missing|truncated)"):
        Dataset.open(copy)


def test_video_of_another_dataset_is_refused(copy, tmp_path):
    other = dataset_of(tmp_path / "other", three_episodes()[:1])
    shutil.copy(video(other.path), video(copy))
    with pytest.raises(ArtifactError, match="has 23 frames, the metadata needs 64"):
        Dataset.open(copy)


def test_damaged_picture_data_is_an_error_and_no_grey_frame(copy):
    content = bytearray(video(copy).read_bytes())
    start = content.index(b"mdat") + 4
    content[start : start + 4000] = bytes(4000)
    video(copy).write_bytes(content)
    dataset = Dataset.open(copy)
    with pytest.raises(ArtifactError, match=r"file-000\.mp4"):
        dataset.frames(0, "cam_high", np.arange(23))


def test_data_of_another_dataset_is_refused(copy, tmp_path):
    other = dataset_of(tmp_path / "other", three_episodes()[:2])
    shutil.copy(other.path / "data/chunk-000/file-000.parquet", copy / "data/chunk-000/file-000.parquet")
    with pytest.raises(ArtifactError, match="do not match meta/episodes"):
        Dataset.open(copy)


def test_counts_that_disagree_are_refused(copy):
    edit_info(copy, total_frames=65)
    with pytest.raises(ArtifactError, match="lists 3 episodes of 64 frames"):
        Dataset.open(copy)


def test_unknown_layout_is_refused_with_its_version(copy):
    edit_info(copy, codebase_version="v1.6")
    with pytest.raises(ArtifactError, match=r"v1\.6.*reads v2\.0, v2\.1 and v3\.0"):
        Dataset.open(copy)


def test_control_rate_that_is_no_whole_number_is_refused(copy):
    edit_info(copy, fps=50.0)
    assert Dataset.open(copy).fps == 50
    edit_info(copy, fps=29.97)
    with pytest.raises(ArtifactError, match=r"info\.json' has fps 29\.97"):
        Dataset.open(copy)


def test_broken_info_is_refused(copy):
    (copy / "meta/info.json").write_text('{"codebase_version": ')
    with pytest.raises(ArtifactError, match=r"info\.json"):
        Dataset.open(copy)


def test_nan_on_disk_names_episode_and_column(copy):
    path = copy / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    actions = np.array(table["action"].to_pylist(), np.float32)
    actions[30, 3] = np.nan
    column = table.schema.get_field_index("action")
    broken = pa.FixedSizeListArray.from_arrays(pa.array(actions.ravel()), 14)
    pq.write_table(table.set_column(column, "action", broken), path)
    with pytest.raises(ArtifactError, match="episode 1, column 'action'"):
        Dataset.open(copy)

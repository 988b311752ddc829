import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.data.dataset import Dataset
from edgewam.data.join import join
from tests.data.foreign_v3 import write_v3
from tests.data.robotwin import small_episode, write_v21

SHAPE = {"cameras": ("image", "image2"), "size": (64, 136), "state_dim": 8, "action_dim": 7}
EPISODES = [small_episode(length, seed, **SHAPE) for seed, length in enumerate((9, 17, 5, 12))]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return Dataset.open(write_v3(tmp_path_factory.mktemp("v3") / "set", EPISODES))


def test_doubles_of_different_widths_in_several_files_come_back(good):
    assert (good.fps, good.state_dim, good.action_dim, good.cameras) == (20, 8, 7, ("front", "wrist"))
    assert good.lengths.tolist() == [9, 17, 5, 12] and len(list(good.path.glob("data/*/*.parquet"))) == 2
    assert good.features["action"]["names"] == [f"dimension_{number}" for number in range(7)]
    for number, one in enumerate(EPISODES):
        assert good.states(number).dtype == np.float32
        np.testing.assert_array_equal(good.states(number), one.states)
        np.testing.assert_array_equal(good.actions(number), one.actions)
        assert good.task(number) == one.task


def test_av1_frames_belong_to_their_episode_and_step(good):
    for number, one in enumerate(EPISODES):
        for camera, stored in (("front", "image"), ("wrist", "image2")):
            frames = good.frames(number, camera, range(len(one))).astype(np.float64)
            nearest = [((frame - one.images[stored]) ** 2).mean((1, 2, 3)).argmin() for frame in frames]
            assert nearest == list(range(len(one)))


def test_files_that_are_gone_are_named(good, tmp_path):
    copy = shutil.copytree(good.path, tmp_path / "copy")
    (copy / "data/chunk-001/file-000.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"data/chunk-001/file-000\.parquet' is missing"):
        Dataset.open(copy)


def test_layouts_join_when_their_features_agree_and_not_when_their_rates_differ(tmp_path):
    one = small_episode(6)
    first, second, slow = (write_v21(tmp_path / name, [small_episode(6, seed)], fps=fps)
                           for seed, (name, fps) in enumerate((("a", 25), ("b", 25), ("c", 10))))  # fmt: skip
    joined = join(tmp_path / "both", [first, second])
    assert (joined.num_episodes, joined.cameras, joined.lengths.tolist()) == (2, tuple(one.images), [6, 6])
    np.testing.assert_array_equal(joined.actions(0), one.actions)
    with pytest.raises(EdgewamError, match=r"c' has 10 steps and 10 frames a second, '.*a' 25"):
        join(tmp_path / "all", [first, slow])


@pytest.mark.parametrize(
    ("file", "column", "values", "what"),
    [
        ("meta/episodes/chunk-000/file-000", "length", ["x"] * 4, "column 'length' does not hold a whole number"),
        ("meta/episodes/chunk-000/file-000", "data/file_index", [None, 0, 0, 0], "column 'data/file_index' does not hold"),
        ("meta/episodes/chunk-000/file-000", "videos/observation.images.image/from_timestamp", [0.0, None, 0.0, 0.0],
         "from_timestamp' does not hold a number"),
        ("meta/tasks", "task", [1, 2], r"tasks\.parquet' does not hold tasks 0\.\.1 with a text each"),
    ],
)  # fmt: skip
def test_metadata_of_another_kind_is_refused(good, tmp_path, file, column, values, what):
    copy = shutil.copytree(good.path, tmp_path / "copy")
    path = copy / f"{file}.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, pa.array(values)), path)
    with pytest.raises(ArtifactError, match=what):
        Dataset.open(copy)

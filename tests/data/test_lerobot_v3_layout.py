"""Every file and column of the v3.0 layout, written out from the format's description and not from the writer."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgewam.data.lerobot_v3 import FileLimits
from tests.data.synthetic import JOINTS, TASKS, dataset_of, episode, three_episodes

CAMERA_KEYS = ["observation.images.cam_high", "observation.images.cam_left_wrist", "observation.images.cam_right_wrist"]
FILES = {
    "manifest.json",
    "meta/info.json",
    "meta/stats.json",
    "meta/tasks.parquet",
    "meta/episodes/chunk-000/file-000.parquet",
    "data/chunk-000/file-000.parquet",
    *(f"videos/{key}/chunk-000/file-000.mp4" for key in CAMERA_KEYS),
}
VECTORS = {"observation.state": 14, "action": 14, "observation.environment_state": 7}
DATA_COLUMNS = {
    **{name: pa.list_(pa.float32(), size) for name, size in VECTORS.items()},
    "timestamp": pa.float32(),
    "frame_index": pa.int64(),
    "episode_index": pa.int64(),
    "index": pa.int64(),
    "task_index": pa.int64(),
}
STATS = ["min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"]
NUMBERS = [*VECTORS, "timestamp", "frame_index", "episode_index", "index", "task_index"]
EPISODE_COLUMNS = {
    "episode_index": pa.int64(),
    "tasks": pa.list_(pa.string()),
    "length": pa.int64(),
    "dataset_from_index": pa.int64(),
    "dataset_to_index": pa.int64(),
    "data/chunk_index": pa.int64(),
    "data/file_index": pa.int64(),
    "meta/episodes/chunk_index": pa.int64(),
    "meta/episodes/file_index": pa.int64(),
    **{f"videos/{key}/{part}_index": pa.int64() for key in CAMERA_KEYS for part in ("chunk", "file")},
    **{f"videos/{key}/{end}_timestamp": pa.float64() for key in CAMERA_KEYS for end in ("from", "to")},
    **{f"stats/{name}/{stat}": pa.list_(pa.float64()) for name in NUMBERS for stat in STATS if stat != "count"},
    **{f"stats/{key}/{s}": pa.list_(pa.list_(pa.list_(pa.float64()))) for key in CAMERA_KEYS for s in STATS if s != "count"},
    **{f"stats/{name}/count": pa.list_(pa.int64()) for name in (*NUMBERS, *CAMERA_KEYS)},
}
INFO = {
    "codebase_version": "v3.0",
    "robot_type": "fake_arm",
    "total_episodes": 3,
    "total_frames": 64,
    "total_tasks": 2,
    "chunks_size": 1000,
    "data_files_size_in_mb": 100,
    "video_files_size_in_mb": 200,
    "fps": 50,
    "splits": {"train": "0:3"},
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return dataset_of(tmp_path_factory.mktemp("layout") / "set", three_episodes()).path


def types(table):
    """Column -> type; lists are compared by what they hold, not by the name of their field."""
    return {field.name: str(field.type).replace("element:", "item:") for field in table.schema}


def test_the_files_are_exactly_these(root):
    assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == FILES


def test_info_holds_exactly_these_entries(root):
    info = json.loads((root / "meta/info.json").read_text())
    assert {key: value for key, value in info.items() if key not in ("features", "edgewam")} == INFO
    assert info["edgewam"]["camera_hz"] == 25
    assert info["edgewam"]["provenance"] == {"style": "synthetic"}
    assert info["edgewam"]["seeds"] == [100, 101, 102]


def test_features_declare_every_column_and_video(root):
    features = json.loads((root / "meta/info.json").read_text())["features"]
    assert set(features) == {*DATA_COLUMNS, *CAMERA_KEYS}
    names = ["height", "width", "channels"]
    size = {"video.height": 32, "video.width": 48, "video.codec": "h264", "video.pix_fmt": "yuv444p", "video.fps": 50}
    info = {**size, "video.is_depth_map": False, "video.channels": 3, "has_audio": False}
    assert features[CAMERA_KEYS[0]] == {"dtype": "video", "shape": [32, 48, 3], "names": names, "info": info}
    assert features["action"] == {"dtype": "float32", "shape": [14], "names": list(JOINTS)}
    assert features["observation.state"] == features["action"]
    assert features["timestamp"] == {"dtype": "float32", "shape": [1], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        assert features[name] == {"dtype": "int64", "shape": [1], "names": None}


def test_data_has_one_row_group_per_episode_and_these_columns(root):
    file = pq.ParquetFile(root / "data/chunk-000/file-000.parquet")
    table = file.read()
    assert types(table) == types(pa.schema(DATA_COLUMNS).empty_table())
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [23, 40, 1]
    assert file.metadata.row_group(0).column(0).compression == "SNAPPY"
    assert table["index"].to_pylist() == list(range(64))
    assert table["frame_index"].to_pylist() == [*range(23), *range(40), 0]
    assert table["episode_index"].to_pylist() == [0] * 23 + [1] * 40 + [2]
    assert table["task_index"].to_pylist() == [0] * 23 + [1] * 40 + [0]
    np.testing.assert_allclose(table["timestamp"].to_numpy(), [i / 50 for i in (*range(23), *range(40), 0)], atol=1e-6)


def test_values_are_stored_bit_by_bit(root):
    table = pq.read_table(root / "data/chunk-000/file-000.parquet")
    for name, values in (
        ("action", "actions"),
        ("observation.state", "states"),
        ("observation.environment_state", "environment_states"),
    ):
        expected = np.concatenate([getattr(one, values) for one in three_episodes()])
        np.testing.assert_array_equal(np.array(table[name].to_pylist(), np.float32), expected)


def test_episodes_table_has_exactly_these_columns(root):
    table = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet")
    assert types(table) == types(pa.schema(EPISODE_COLUMNS).empty_table())
    assert table["length"].to_pylist() == [23, 40, 1]
    assert table["tasks"].to_pylist() == [[TASKS[0]], [TASKS[1]], [TASKS[0]]]
    assert table["dataset_from_index"].to_pylist() == [0, 23, 63]
    assert table["dataset_to_index"].to_pylist() == [23, 63, 64]
    for key in CAMERA_KEYS:
        np.testing.assert_allclose(table[f"videos/{key}/from_timestamp"].to_numpy(), [0, 23 / 50, 63 / 50])
        np.testing.assert_allclose(table[f"videos/{key}/to_timestamp"].to_numpy(), [23 / 50, 63 / 50, 64 / 50])


def test_tasks_are_a_pandas_frame_indexed_by_text(root):
    table = pq.read_table(root / "meta/tasks.parquet")
    assert table["task_index"].to_pylist() == [0, 1]
    pandas = json.loads(table.schema.metadata[b"pandas"])
    (index,) = pandas["index_columns"]
    assert table[index].to_pylist() == list(TASKS)
    assert {column["field_name"]: column["pandas_type"] for column in pandas["columns"]} == {
        "task_index": "int64",
        index: "unicode",
    }


def test_pandas_itself_reads_the_tasks(root):
    pandas = pytest.importorskip("pandas", reason="pandas is no dependency; the metadata itself is checked above")
    frame = pandas.read_parquet(root / "meta/tasks.parquet")
    assert list(frame.columns) == ["task_index"]
    assert list(frame.index) == list(TASKS)
    assert frame.loc[TASKS[1]].task_index == 1


def test_stats_have_every_entry_in_the_right_shape(root):
    stats = json.loads((root / "meta/stats.json").read_text())
    assert set(stats) == {*NUMBERS, *CAMERA_KEYS}
    for name, found in stats.items():
        assert list(found) == STATS or set(found) == set(STATS)
        shape = (3, 1, 1) if name in CAMERA_KEYS else (VECTORS.get(name, 1),)
        assert all(np.shape(value) == ((1,) if key == "count" else shape) for key, value in found.items()), name
        assert np.all(np.array(found["min"]) <= found["q01"]) and np.all(np.array(found["q99"]) <= found["max"])
        if name in CAMERA_KEYS:
            assert np.min(found["min"]) >= 0 and np.max(found["max"]) <= 1


def test_stats_are_those_of_the_values(root):
    stats = json.loads((root / "meta/stats.json").read_text())
    actions = np.concatenate([one.actions for one in three_episodes()]).astype(np.float64)
    assert stats["action"]["count"] == [64]
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0))
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0))
    np.testing.assert_allclose(stats["action"]["q10"], np.quantile(actions, 0.1, axis=0))
    # images are measured at every fourth frame of each episode, by histogram
    frames = np.concatenate([one.images["cam_high"][::4] for one in three_episodes()]) / 255.0
    found = stats[CAMERA_KEYS[0]]
    assert found["count"] == [len(frames)]
    np.testing.assert_allclose(np.ravel(found["mean"]), frames.mean((0, 1, 2)))
    np.testing.assert_allclose(np.ravel(found["std"]), frames.std((0, 1, 2)))
    quantile = np.quantile(frames.reshape(-1, 3), 0.5, axis=0, method="inverted_cdf")
    np.testing.assert_allclose(np.ravel(found["q50"]), quantile)


def test_small_limits_spread_episodes_over_files_and_chunks(tmp_path):
    episodes = [episode(8, seed) for seed in range(5)]
    dataset = dataset_of(tmp_path / "set", episodes, FileLimits(data_mb=0, video_mb=0, chunk_size=2))
    expected = {f"chunk-00{i // 2}/file-00{i % 2}" for i in range(5)}
    for folder, suffix in (("data", ".parquet"), (f"videos/{CAMERA_KEYS[0]}", ".mp4")):
        names = {str(path.relative_to(dataset.path / folder)) for path in (dataset.path / folder).rglob(f"*{suffix}")}
        assert names == {name + suffix for name in expected}
    for number, one in enumerate(episodes):
        np.testing.assert_array_equal(dataset.actions(number), one.actions)
        seen = dataset.frames(number, "cam_high", [7]).astype(int)
        assert np.abs(seen - one.images["cam_high"][[7]]).mean() < 3

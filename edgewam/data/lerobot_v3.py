"""Write stored episodes as a LeRobot v3.0 dataset.  pyarrow and PyAV only; pandas is not needed.

Layout (facts/robot.md 2.1): meta/info.json, meta/stats.json, meta/tasks.parquet, meta/episodes, data and videos, the last
three in files `chunk-CCC/file-FFF` that hold many episodes each.  `lerobot_v3_index` reads it back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgewam.core.artifacts import write_artifact, write_json
from edgewam.core.errors import ArtifactError, require
from edgewam.data.episode_stats import Stats, image_stats, vector_stats
from edgewam.data.episode_store import StoredEpisode
from edgewam.data.schema import IMAGE_PREFIX, Floats, Schema
from edgewam.data.video import codec_header, join_videos

VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
TASKS_PATH = "meta/tasks.parquet"
OWN_KEY = "edgewam"  # the one key of info.json that is not LeRobot's
_TASK_INDEX_COLUMN = "__index_level_0__"  # how pandas names an unnamed index


@dataclass(frozen=True)
class FileLimits:
    """When a new file begins (megabytes of content) and how many files share a chunk directory."""

    data_mb: int = 100
    video_mb: int = 200
    chunk_size: int = 1000


def write_dataset(
    out: Path,
    schema: Schema,
    episodes: Sequence[StoredEpisode],
    provenance: Mapping[str, Any],
    limits: FileLimits | None = None,
) -> None:
    """Turn stored episodes into a dataset directory that appears whole or not at all.

    `provenance` (plain JSON) goes to meta/info.json under `edgewam` and into the artifact's manifest.
    """
    if not episodes:
        raise ArtifactError("There are no complete episodes to write. Collect some first.")
    limits = limits or FileLimits()
    tasks = list(dict.fromkeys(episode.task for episode in episodes))
    lengths = [episode.length for episode in episodes]
    with write_artifact(out, "dataset", config={"schema": schema.to_json(), **provenance}) as root:
        rows: list[dict[str, Any]] = []
        starts = np.concatenate([[0], np.cumsum(lengths)])
        for number, episode in enumerate(episodes):
            start, end = int(starts[number]), int(starts[number + 1])
            row: dict[str, Any] = {"episode_index": number, "tasks": [episode.task], "length": episode.length}
            rows.append(row | {"dataset_from_index": start, "dataset_to_index": end})
        stats = _write_data(root, schema, episodes, tasks, rows, limits)
        for camera in schema.cameras:
            _write_videos(root, schema, camera, episodes, rows, limits)
        _write_episodes(root, rows)
        _write_tasks(root, tasks)
        write_json(root / "meta/stats.json", {feature: _stats_json(found) for feature, found in stats.items()})
        own = {"camera_hz": schema.camera_hz, "provenance": dict(provenance), "seeds": [episode.seed for episode in episodes]}
        info = {
            "codebase_version": VERSION,
            "robot_type": schema.robot_type,
            "total_episodes": len(episodes),
            "total_frames": sum(lengths),
            "total_tasks": len(tasks),
            "chunks_size": limits.chunk_size,
            "data_files_size_in_mb": limits.data_mb,
            "video_files_size_in_mb": limits.video_mb,
            "fps": schema.fps,
            "splits": {"train": f"0:{len(episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": schema.features(),
            OWN_KEY: own,
        }
        write_json(root / "meta/info.json", info)


def _write_data(
    root: Path,
    schema: Schema,
    episodes: Sequence[StoredEpisode],
    tasks: list[str],
    rows: list[dict[str, Any]],
    limits: FileLimits,
) -> dict[str, Stats]:
    """Write the parquet files, add file places and statistics to `rows`, return the statistics of the whole dataset."""
    pa, pq = require("pyarrow", extra="train"), require("pyarrow.parquet", extra="train")
    pieces: dict[str, list[np.ndarray[Any, Any]]] = {}
    histograms = {camera: np.zeros((3, 256), np.int64) for camera in schema.cameras}
    writer, file_number, size = None, -1, 0
    try:
        for row, episode in zip(rows, episodes, strict=True):
            vectors, counts = episode.arrays()
            columns = _scalar_columns(row, episode.length, schema.fps, tasks.index(episode.task))
            for name, values in {**vectors, **columns}.items():
                pieces.setdefault(name, []).append(values)
                _add_stats(row, name, vector_stats(values))
            for camera, histogram in counts.items():
                histograms[camera] += histogram
                _add_stats(row, IMAGE_PREFIX + camera, image_stats(histogram, episode.num_measured))
            table = pa.table({n: _vector_array(v) for n, v in vectors.items()} | {n: pa.array(v) for n, v in columns.items()})
            if writer is None or size + table.nbytes > limits.data_mb * 2**20:
                if writer is not None:
                    writer.close()
                file_number, size = file_number + 1, 0
                path = root / DATA_PATH.format(**_place(file_number, limits))
                path.parent.mkdir(parents=True, exist_ok=True)
                writer = pq.ParquetWriter(path, table.schema, compression="snappy")
            writer.write_table(table, row_group_size=episode.length)  # one row group per episode
            size += table.nbytes
            row |= {f"data/{key}": value for key, value in _place(file_number, limits).items()}
    finally:
        if writer is not None:
            writer.close()
    stats = {name: vector_stats(np.concatenate(values)) for name, values in pieces.items()}
    num_measured = sum(episode.num_measured for episode in episodes)
    return stats | {IMAGE_PREFIX + camera: image_stats(histograms[camera], num_measured) for camera in schema.cameras}


def _scalar_columns(row: Mapping[str, Any], length: int, fps: int, task_index: int) -> dict[str, np.ndarray[Any, Any]]:
    steps = np.arange(length, dtype=np.int64)
    return {
        "timestamp": (steps / fps).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(length, row["episode_index"], np.int64),
        "index": steps + row["dataset_from_index"],
        "task_index": np.full(length, task_index, np.int64),
    }


def _vector_array(values: Floats) -> Any:
    pa = require("pyarrow", extra="train")
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _write_videos(
    root: Path, schema: Schema, camera: str, episodes: Sequence[StoredEpisode], rows: list[dict[str, Any]], limits: FileLimits
) -> None:
    key = IMAGE_PREFIX + camera
    groups: list[list[int]] = []
    size, header = 0, b""
    for number, episode in enumerate(episodes):
        path = episode.video(camera)
        size += path.stat().st_size
        # an encoder of another version may write other parameter sets: those episodes get their own file
        if not groups or size > limits.video_mb * 2**20 or codec_header(path) != header:
            groups.append([])
            size, header = path.stat().st_size, codec_header(path)
        groups[-1].append(number)
    for file_number, members in enumerate(groups):
        place = _place(file_number, limits)
        path = root / VIDEO_PATH.format(video_key=key, **place)
        path.parent.mkdir(parents=True, exist_ok=True)
        starts = join_videos(path, [episodes[number].video(camera) for number in members], schema.fps)
        for number, start in zip(members, starts, strict=True):
            row, end = rows[number], start + episodes[number].length
            row |= {f"videos/{key}/{name}": value for name, value in place.items()}
            row |= {f"videos/{key}/from_timestamp": start / schema.fps, f"videos/{key}/to_timestamp": end / schema.fps}


def _write_episodes(root: Path, rows: list[dict[str, Any]]) -> None:
    pa, pq = require("pyarrow", extra="train"), require("pyarrow.parquet", extra="train")
    path = root / EPISODES_PATH.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="snappy")


def _write_tasks(root: Path, tasks: list[str]) -> None:
    """A table that pandas reads as one column `task_index` under an index of task texts."""
    pa, pq = require("pyarrow", extra="train"), require("pyarrow.parquet", extra="train")
    string = {"pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None},
        {"name": None, "field_name": _TASK_INDEX_COLUMN, **string},
    ]
    names = [{"name": None, "field_name": None, **string, "metadata": {"encoding": "UTF-8"}}]
    pandas = {"index_columns": [_TASK_INDEX_COLUMN], "column_indexes": names, "columns": columns, "pandas_version": "2.0.0"}
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), _TASK_INDEX_COLUMN: pa.array(tasks, pa.string())})
    pq.write_table(table.replace_schema_metadata({b"pandas": json.dumps(pandas).encode()}), root / TASKS_PATH)


def _place(file_number: int, limits: FileLimits) -> dict[str, int]:
    return {"chunk_index": file_number // limits.chunk_size, "file_index": file_number % limits.chunk_size}


def _add_stats(row: dict[str, Any], feature: str, stats: Stats) -> None:
    row |= {f"stats/{feature}/{name}": value for name, value in _stats_json(stats).items()}


def _stats_json(stats: Stats) -> dict[str, Any]:
    return {name: value.tolist() for name, value in stats.items()}

"""Index a LeRobot v3.0 dataset on disk: all numbers loaded, every frame located, every file checked against the others.

The layout's names and path templates are those of `lerobot_v3`, which writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgewam.core.errors import ArtifactError, require
from edgewam.data.index import Index
from edgewam.data.lerobot_v3 import TASKS_PATH, VERSION
from edgewam.data.schema import ACTION, IMAGE_PREFIX, STATE, Floats
from edgewam.data.video import num_video_frames


def read_index(root: Path, info: Mapping[str, Any]) -> Index:
    """Load all numbers of a v3.0 dataset and locate its frames.

    Raises:
        ArtifactError: a file is missing, truncated or disagrees with another; the message names it.
    """
    paths = sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet"))
    if not paths:
        raise ArtifactError(f"'{root}' has no meta/episodes/*.parquet. Copy or collect the dataset again.")
    episodes = sorted((row for path in paths for row in _read_table(path).to_pylist()), key=lambda row: row["episode_index"])
    try:
        return _build_index(root, info, episodes)
    except KeyError as error:
        raise ArtifactError(
            f"The metadata of '{root}' lacks {error}: it is no complete {VERSION} dataset. Copy or collect it again."
        ) from None


def _build_index(root: Path, info: Mapping[str, Any], episodes: list[dict[str, Any]]) -> Index:
    lengths = np.array([row["length"] for row in episodes], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    counts = (len(episodes), int(lengths.sum()))
    if counts != (info["total_episodes"], info["total_frames"]) or any(
        row["episode_index"] != i for i, row in enumerate(episodes)
    ):
        raise ArtifactError(
            f"'{root}' lists {counts[0]} episodes of {counts[1]} frames, "
            f"but info.json {info['total_episodes']} of {info['total_frames']}: "
            "files are missing or mixed. Copy or collect the dataset again."
        )
    data_paths = list(dict.fromkeys(root / info["data_path"].format(**_row_place(row, "data")) for row in episodes))
    tables = [_read_table(path) for path in data_paths]
    names = [name for name, entry in info["features"].items() if entry["dtype"] == "float32" and name != "timestamp"]
    if missing := {STATE, ACTION} - set(names):
        raise ArtifactError(f"'{root}' has no feature {sorted(missing)}; it holds {names}. Give a dataset with these features.")
    columns = {
        name: np.concatenate([table[name].to_numpy() for table in tables])
        for name in ("episode_index", "frame_index", "task_index")
    }
    wanted_steps = np.arange(counts[1]) - np.repeat(starts, lengths)
    whole = len(columns["frame_index"]) == counts[1]
    if (
        not whole
        or (columns["episode_index"] != np.repeat(np.arange(counts[0]), lengths)).any()
        or (columns["frame_index"] != wanted_steps).any()
    ):
        raise ArtifactError(
            f"The rows of '{root / 'data'}' do not match meta/episodes: files are missing or mixed. Copy the dataset again."
        )
    vectors = {name: np.concatenate([_vectors(table, name, info) for table in tables]) for name in names}
    for name, values in vectors.items():
        bad = np.flatnonzero(~np.isfinite(values).all(1))
        if len(bad):
            episode = int(columns["episode_index"][bad[0]])
            raise ArtifactError(
                f"'{root}', episode {episode}, column '{name}': {len(bad)} rows are not finite. Remove or record it again."
            )
    task_index = columns["task_index"][starts].astype(np.int64)
    tasks = _read_tasks(root / TASKS_PATH)
    if task_index.max() >= len(tasks):
        raise ArtifactError(
            f"'{root / TASKS_PATH}' has {len(tasks)} tasks, an episode uses number {task_index.max()}. Copy the dataset again."
        )
    keys = [name for name, entry in info["features"].items() if entry["dtype"] == "video"]
    videos = {key.removeprefix(IMAGE_PREFIX): _locate_videos(root, info, key, episodes) for key in keys}
    return Index(info, lengths, starts, task_index, tasks, vectors, videos)


def _locate_videos(root: Path, info: Mapping[str, Any], key: str, episodes: list[dict[str, Any]]) -> tuple[list[Path], list[int]]:
    files = [root / info["video_path"].format(video_key=key, **_row_place(row, f"videos/{key}")) for row in episodes]
    firsts = [round(row[f"videos/{key}/from_timestamp"] * info["fps"]) for row in episodes]
    needed: dict[Path, int] = {}
    for path, first, row in zip(files, firsts, episodes, strict=True):
        needed[path] = max(needed.get(path, 0), first + row["length"])
    for path, count in needed.items():
        if (have := num_video_frames(path)) < count:
            raise ArtifactError(
                f"Video '{path}' has {have} frames, the metadata needs {count}. Copy or collect the dataset again."
            )
    return files, firsts


def _row_place(row: Mapping[str, Any], prefix: str) -> dict[str, int]:
    return {name: row[f"{prefix}/{name}"] for name in ("chunk_index", "file_index")}


def _vectors(table: Any, name: str, info: Mapping[str, Any]) -> Floats:
    column = table[name].combine_chunks()
    width = info["features"][name]["shape"][0]
    values = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32)
    if column.null_count or len(values) != len(table) * width:
        raise ArtifactError(f"Column '{name}' does not hold {width} values in every row. Copy or collect the dataset again.")
    return values.reshape(-1, width)


def _read_tasks(path: Path) -> tuple[str, ...]:
    table = _read_table(path)
    text_column = next(name for name in table.column_names if name != "task_index")
    texts = dict(zip(table["task_index"].to_pylist(), table[text_column].to_pylist(), strict=True))
    return tuple(texts[index] for index in range(len(texts)))


def _read_table(path: Path) -> Any:
    pa, pq = require("pyarrow", extra="train"), require("pyarrow.parquet", extra="train")
    if not path.is_file():
        raise ArtifactError(f"'{path}' is missing. Copy or collect the dataset again.")
    try:
        return pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(
            f"Cannot read '{path}' ({error}): it is truncated or no parquet file. Copy or collect the dataset again."
        ) from error

"""Index a LeRobot v3.0 dataset on disk: all numbers loaded, every frame located, every file checked against the others.

The layout's names and path templates are those of `lerobot_v3`, which writes it.  Datasets of other writers differ in
feature names, float types, codec and number of files, and are read alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgewam.core.errors import ArtifactError
from edgewam.data import tables
from edgewam.data.index import Index
from edgewam.data.key_map import KeyMap, resolve, width_of
from edgewam.data.lerobot_v3 import DATA_PATH, TASKS_PATH, VERSION, VIDEO_PATH
from edgewam.data.video import num_video_frames


def read_index(root: Path, info: Mapping[str, Any], keys: KeyMap) -> Index:
    """Load all numbers of a v3.0 dataset and locate its frames.

    Raises:
        ArtifactError: a file is missing, truncated or disagrees with another; the message names it.
    """
    paths = sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet"))
    if not paths:
        raise ArtifactError(f"'{root}' has no meta/episodes/*.parquet. Copy or collect the dataset again.")
    episodes = sorted((row for path in paths for row in _read_rows(path)), key=lambda row: row["episode_index"])
    try:
        return _build_index(root, info, keys, episodes)
    except KeyError as error:
        raise ArtifactError(
            f"The metadata of '{root}' lacks {error}: it is no complete {VERSION} dataset. Copy or collect it again."
        ) from None


def problems(root: Path, info: Mapping[str, Any], keys: KeyMap) -> list[str]:
    """What `read_index` would refuse, with every file that cannot be read and not only the first."""
    found = []
    for path in sorted(root.glob("data/*/*.parquet")):
        try:
            tables.read_table(path)
        except ArtifactError as error:
            found.append(str(error))
    for path in sorted(root.glob("videos/*/*/*.mp4")):
        try:
            num_video_frames(path, int(info["fps"]))
        except ArtifactError as error:
            found.append(str(error))
    try:
        read_index(root, info, keys)
    except ArtifactError as error:
        found.append(str(error))
    return list(dict.fromkeys(found))


def _build_index(root: Path, info: Mapping[str, Any], given: KeyMap, episodes: list[dict[str, Any]]) -> Index:
    keys = resolve(root, info["features"], given)
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
    template = info.get("data_path") or DATA_PATH
    data_paths = list(dict.fromkeys(root / template.format(**_row_place(row, "data")) for row in episodes))
    needed = (*keys.vectors.values(), "episode_index", "frame_index", "task_index")
    loaded = [tables.read_table(path, needed) for path in data_paths]
    for path, table in zip(data_paths, loaded, strict=True):
        tables.need(table, needed, path)
    columns = {
        name: np.concatenate([tables.integers(table, name, path) for path, table in zip(data_paths, loaded, strict=True)])
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
    vectors = {
        name: np.concatenate(
            [
                tables.vectors(table, key, width_of(info["features"][key]), path)
                for path, table in zip(data_paths, loaded, strict=True)
            ]
        )
        for name, key in keys.vectors.items()
    }
    for name, values in vectors.items():
        tables.check_finite(values, keys.vectors[name], root, columns["episode_index"])
    task_index = columns["task_index"][starts].astype(np.int64)
    tasks = _read_tasks(root / TASKS_PATH)
    if task_index.max() >= len(tasks):
        raise ArtifactError(
            f"'{root / TASKS_PATH}' has {len(tasks)} tasks, an episode uses number {task_index.max()}. Copy the dataset again."
        )
    videos = {name: _locate_videos(root, info, key, episodes) for name, key in keys.cameras.items()}
    named = {**info, "features": keys.features(info["features"])}
    return Index(named, lengths, starts, task_index, tasks, vectors, videos)


def _locate_videos(root: Path, info: Mapping[str, Any], key: str, episodes: list[dict[str, Any]]) -> tuple[list[Path], list[int]]:
    template = info.get("video_path") or VIDEO_PATH
    files = [root / template.format(video_key=key, **_row_place(row, f"videos/{key}")) for row in episodes]
    firsts = [round(row[f"videos/{key}/from_timestamp"] * info["fps"]) for row in episodes]
    needed: dict[Path, int] = {}
    for path, first, row in zip(files, firsts, episodes, strict=True):
        needed[path] = max(needed.get(path, 0), first + row["length"])
    for path, count in needed.items():
        if (have := num_video_frames(path, int(info["fps"]))) < count:
            raise ArtifactError(
                f"Video '{path}' has {have} frames, the metadata needs {count}. Copy or collect the dataset again."
            )
    return files, firsts


def _row_place(row: Mapping[str, Any], prefix: str) -> dict[str, int]:
    return {name: row[f"{prefix}/{name}"] for name in ("chunk_index", "file_index")}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """One row per episode: its number, length and the places of its data and frames; statistics stay on the disk."""
    table = tables.read_table(path)
    tables.need(table, ("episode_index", "length"), path)
    columns: dict[str, list[Any]] = {}
    for name in table.column_names:
        if name in ("episode_index", "length") or name.endswith(("/chunk_index", "/file_index")):
            columns[name] = tables.integers(table, name, path).tolist()
        elif name.endswith("/from_timestamp"):
            columns[name] = tables.seconds(table, name, path).tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _read_tasks(path: Path) -> tuple[str, ...]:
    table = tables.read_table(path)
    tables.need(table, ("task_index",), path)
    texts = next((table[name] for name in table.column_names if name != "task_index"), None)
    numbers = tables.integers(table, "task_index", path).tolist()
    try:
        found = dict(zip(numbers, texts.to_pylist() if texts is not None else [], strict=True))
    except ValueError:  # another number of texts, or bytes that are no text
        found = {}
    if sorted(found) != list(range(len(numbers))) or not all(isinstance(text, str) for text in found.values()):
        raise ArtifactError(f"'{path}' does not hold tasks 0..{len(numbers) - 1} with a text each. Copy the dataset again.")
    return tuple(found[number] for number in range(len(found)))

"""Index a LeRobot v2.1 dataset on disk, such as RoboTwin's: one parquet and one mp4 per episode and camera (facts/robot.md 2.4).

v2.0 differs only in where statistics are kept, which nothing here reads.  Files are read side by side, since a dataset
has thousands of small ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import ArtifactError
from edgewam.data import tables
from edgewam.data.index import Index
from edgewam.data.key_map import KeyMap, Keys, resolve, width_of
from edgewam.data.schema import Floats
from edgewam.data.video import num_video_frames

VERSIONS = ("v2.0", "v2.1")
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
EPISODES_PATH, TASKS_PATH = "meta/episodes.jsonl", "meta/tasks.jsonl"
_THREADS = 8  # reading is waiting for the disk

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Files:
    """What the metadata promise: one row, parquet and set of videos per episode."""

    keys: Keys
    rows: list[dict[str, Any]]
    tasks: tuple[str, ...]
    tables: list[Path]
    videos: dict[str, list[Path]]


def read_index(root: Path, info: Mapping[str, Any], keys: KeyMap) -> Index:
    """Load all numbers of a v2.1 dataset and locate its frames.

    Raises:
        ArtifactError: a file is missing, truncated or disagrees with another; the message names it.
    """
    files = _locate(root, info, keys)
    loaded = side_by_side(lambda number: _read_episode(files, info, number), range(len(files.rows)))
    # after the tables: videos are counted against lengths that the rows have confirmed
    side_by_side(lambda pair: _check_video(info, *pair), _videos_with_lengths(files))
    lengths = np.array([row["length"] for row in files.rows], np.int64)
    return Index(
        info={**info, "features": files.keys.features(info["features"])},
        lengths=lengths,
        starts=(np.cumsum(lengths) - lengths).astype(np.int64),
        task_index=np.array([task for _, task in loaded], np.int64),
        tasks=files.tasks,
        vectors={name: np.concatenate([vectors[name] for vectors, _ in loaded]) for name in files.keys.vectors},
        videos={name: (paths, [0] * len(paths)) for name, paths in files.videos.items()},
    )


def problems(root: Path, info: Mapping[str, Any], keys: KeyMap) -> list[str]:
    """Everything that `read_index` would refuse, file by file and not only the first; metadata that lie end the list."""
    try:
        files = _locate(root, info, keys)
    except ArtifactError as error:
        return [str(error)]
    tables_ = side_by_side(told(lambda number: _read_episode(files, info, number)), range(len(files.rows)))
    videos = side_by_side(told(lambda pair: _check_video(info, *pair)), _videos_with_lengths(files))
    return [message for message in (*tables_, *videos) if message]


def told(work: Callable[[T], object]) -> Callable[[T], str | None]:
    """`work` that returns its error as text, or None."""

    def attempt(item: T) -> str | None:
        try:
            work(item)
        except ArtifactError as error:
            return str(error)
        return None

    return attempt


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`work` of every item in order, on a few threads; the first error ends it."""
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            return list(pool.map(work, items))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _locate(root: Path, info: Mapping[str, Any], keys: KeyMap) -> _Files:
    found = resolve(root, info["features"], keys)
    rows = _read_episodes(root, info)
    return _Files(
        keys=found,
        rows=rows,
        tasks=_read_tasks(root, rows),
        tables=[_path(root, info, "data_path", DATA_PATH, row) for row in rows],
        videos={
            name: [_path(root, info, "video_path", VIDEO_PATH, row, video_key=key) for row in rows]
            for name, key in found.cameras.items()
        },
    )


def _videos_with_lengths(files: _Files) -> list[tuple[Path, int]]:
    return [(path, row["length"]) for paths in files.videos.values() for path, row in zip(paths, files.rows, strict=True)]


def _check_video(info: Mapping[str, Any], path: Path, length: int) -> None:
    if (have := num_video_frames(path, int(info["fps"]))) != length:
        raise ArtifactError(
            f"Video '{path}' has {have} frames, its episode {length} steps. Copy the dataset again, or remove that episode."
        )


def _read_episode(files: _Files, info: Mapping[str, Any], place: int) -> tuple[dict[str, Floats], int]:
    """Vectors of the episode at `place` by our names, and the task's number."""
    path, row, keys = files.tables[place], files.rows[place], files.keys.vectors
    needed = (*keys.values(), "frame_index", "episode_index")
    table = tables.read_table(path, (*needed, "task_index"))
    tables.need(table, needed, path)
    number, length = row["episode_index"], row["length"]
    if len(table) != length:
        raise ArtifactError(
            f"'{path}' has {len(table)} rows, '{EPISODES_PATH}' says {length}: the file is another episode's or was cut. "
            "Copy the dataset again."
        )
    indices: npt.NDArray[np.int64] = tables.integers(table, "episode_index", path)
    steps = tables.integers(table, "frame_index", path)
    if (indices != number).any() or (steps != np.arange(length)).any():
        raise ArtifactError(f"'{path}' does not hold episode {number}, steps 0..{length - 1} in order. Copy the dataset again.")
    vectors = {name: tables.vectors(table, key, width_of(info["features"][key]), path) for name, key in keys.items()}
    for name, values in vectors.items():
        tables.check_finite(values, keys[name], path, indices)
    if "task_index" in table.column_names:
        task = int(tables.integers(table, "task_index", path)[0])
    else:
        task = files.tasks.index(row["tasks"][0]) if row["tasks"] else -1
    if not 0 <= task < len(files.tasks):
        raise ArtifactError(f"'{path}' is of task {task}, '{TASKS_PATH}' has {len(files.tasks)} tasks. Copy the dataset again.")
    return vectors, task


def _read_episodes(root: Path, info: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = _read_lines(root / EPISODES_PATH, {"episode_index": int, "length": int, "tasks": list})
    episodes = sorted(rows, key=lambda row: row["episode_index"])
    frames = sum(row["length"] for row in episodes)
    if (len(episodes), frames) != (info["total_episodes"], info["total_frames"]):
        raise ArtifactError(
            f"'{root / EPISODES_PATH}' lists {len(episodes)} episodes of {frames} frames, info.json "
            f"{info['total_episodes']} of {info['total_frames']}: files are missing or mixed. Copy the dataset again."
        )
    if empty := [row["episode_index"] for row in episodes if row["length"] < 1] or not episodes:
        raise ArtifactError(f"'{root / EPISODES_PATH}' has no episodes or empty ones ({empty}). Remove them or copy it again.")
    # numbers may have gaps, where somebody removed episodes, but none twice
    if len({row["episode_index"] for row in episodes}) != len(episodes):
        raise ArtifactError(f"'{root / EPISODES_PATH}' lists an episode twice. Copy the dataset again.")
    return episodes


def _read_tasks(root: Path, episodes: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    texts = {row["task_index"]: row["task"] for row in _read_lines(root / TASKS_PATH, {"task_index": int, "task": str})}
    if set(texts) != set(range(len(texts))) or not texts:
        raise ArtifactError(f"'{root / TASKS_PATH}' does not number its tasks 0..{len(texts) - 1}. Copy the dataset again.")
    known = set(texts.values())
    for row in episodes:
        if unknown := [task for task in row["tasks"] if not isinstance(task, str) or task not in known]:
            raise ArtifactError(
                f"'{root / EPISODES_PATH}', episode {row['episode_index']}: task '{unknown[0]}' is not in '{TASKS_PATH}'. "
                "Copy the dataset again."
            )
    return tuple(texts[number] for number in range(len(texts)))


def _read_lines(path: Path, needed: Mapping[str, type]) -> list[dict[str, Any]]:
    """JSON objects, one a line, each with the entries `needed` of these types."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise ArtifactError(f"'{path}' is missing. Copy the dataset again.") from None
    except ValueError as error:
        raise ArtifactError(f"'{path}' is no text ({error}). Copy the dataset again.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"'{path}', line {number} is no JSON ({error}). Copy the dataset again.") from error
        if not isinstance(row, dict):
            raise ArtifactError(f"'{path}', line {number} is no JSON object. Copy the dataset again.")
        for name, kind in needed.items():
            if not isinstance(row.get(name), kind):
                raise ArtifactError(f"'{path}', line {number}: '{name}' is {row.get(name)!r}. Copy the dataset again.")
        rows.append(row)
    return rows


def _path(root: Path, info: Mapping[str, Any], name: str, default: str, row: Mapping[str, Any], **more: str) -> Path:
    number = int(row["episode_index"])
    template = info.get(name) or default
    try:
        return root / template.format(episode_chunk=number // int(info.get("chunks_size", 1000)), episode_index=number, **more)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"'{root / 'meta/info.json'}': {name} '{template}' is no v2.1 path ({error!r}). Copy the dataset again."
        ) from error

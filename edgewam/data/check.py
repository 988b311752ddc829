"""Everything that is wrong with a dataset, file by file, where `Dataset.open` stops at the first fault.

Beyond what opening checks: timestamps, the size of pictures, and that frames decode (the first, middle and last of every
episode, or all).  A flipped bit that stays valid code cannot be told from another picture: videos carry no checksum.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.data import lerobot_v3_index, lerobot_v21_index, tables
from edgewam.data.dataset import Dataset, read_info
from edgewam.data.key_map import KeyMap
from edgewam.data.lerobot_v3 import VERSION
from edgewam.data.lerobot_v21_index import side_by_side, told
from edgewam.data.schema import ACTION, IMAGE_PREFIX, STATE
from edgewam.data.video import check_frames

TIMESTAMP_SLACK = 0.1  # of a step; float32 seconds are good to 1e-4 after an hour, a dropped frame is off by a whole step
_LEAST_RANGE = 1e-4  # a number that moves less carries nothing (the bound of min/max normalisation)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Checked:
    """What a dataset is, what is wrong with it (do not train on it) and what its owner should know."""

    path: str
    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def check_dataset(path: Path, keys: KeyMap | None = None, full: bool = False, progress: Progress | None = None) -> Checked:
    """Check a dataset directory or a list of datasets that `join` wrote.

    Args:
        path: the directory.
        keys: as for `Dataset.open`.
        full: decode every frame.
        progress: called with (videos done, videos).
    """
    try:
        if (path / "join.json").exists():
            return _check_join(path, full, progress)
        info, keys = read_info(path), KeyMap.stored(path) if keys is None else keys
        dataset = Dataset.open(path, keys)
    except EdgewamError as error:
        return Checked(str(path), problems=_every_problem(path, keys) or [str(error)])
    facts = {"layout": info["codebase_version"], **_facts(dataset)}
    problems = [*_timestamps(dataset), *_pictures(dataset, full, progress or (lambda done, total: None))]
    return Checked(str(path), facts, problems, _notes(dataset))


def _check_join(path: Path, full: bool, progress: Progress | None) -> Checked:
    parts = [path / entry["path"] for entry in json.loads((path / "join.json").read_text())["datasets"]]
    checked = [check_dataset(part.resolve(), None, full, progress) for part in parts]
    problems = [problem for one in checked for problem in one.problems]
    notes = [note for one in checked for note in one.notes]
    if problems:
        return Checked(str(path), problems=problems, notes=notes)
    return Checked(str(path), {"layout": "joined", **_facts(Dataset.open(path))}, notes=notes)


def _every_problem(path: Path, keys: KeyMap | None) -> list[str]:
    try:
        info, keys = read_info(path), KeyMap.stored(path) if keys is None else keys
    except ArtifactError as error:
        return [str(error)]
    layout = {VERSION: lerobot_v3_index} | dict.fromkeys(lerobot_v21_index.VERSIONS, lerobot_v21_index)
    reader = layout.get(info.get("codebase_version", ""))
    return reader.problems(path, info, keys) if reader else []


def _facts(dataset: Dataset) -> dict[str, Any]:
    return {
        "episodes": dataset.num_episodes,
        "steps": int(dataset.lengths.sum()),
        "shortest": int(dataset.lengths.min()),
        "longest": int(dataset.lengths.max()),
        "fps": dataset.fps,
        "state_dim": dataset.state_dim,
        "action_dim": dataset.action_dim,
        "cameras": {name: list(dataset.features.get(IMAGE_PREFIX + name, {}).get("shape") or ()) for name in dataset.cameras},
        "tasks": list(dataset.tasks),
        "digest": dataset.digest,
    }


def _timestamps(dataset: Dataset) -> list[str]:
    """Files whose column `timestamp` is not frame_index / fps."""
    files = sorted(dataset.path.glob("data/*/*.parquet"))
    return [message for message in side_by_side(told(lambda file: _check_timestamps(file, dataset.fps)), files) if message]


def _check_timestamps(path: Path, fps: int) -> None:
    table = tables.read_table(path, ("timestamp", "frame_index", "episode_index"))
    if "timestamp" not in table.column_names:
        return
    late = tables.vectors(table, "timestamp", 1, path)[:, 0] * fps - tables.integers(table, "frame_index", path)
    if len(bad := np.flatnonzero(~(np.abs(late) <= TIMESTAMP_SLACK))):
        episode, step = (int(tables.integers(table, name, path)[bad[0]]) for name in ("episode_index", "frame_index"))
        raise ArtifactError(
            f"'{path}', episode {episode}, step {step}: the timestamp is {late[bad[0]]:+.2f} steps off frame_index / fps. "
            f"Frames were dropped, or the rate is not the {fps} of meta/info.json: record or resample it again."
        )


def _pictures(dataset: Dataset, full: bool, progress: Progress) -> list[str]:
    """Frames that do not decode, or have another size than the metadata say."""
    last: dict[Path, int] = {}
    work: list[tuple[str, int]] = []
    for camera, (files, firsts) in dataset.index.videos.items():
        for episode, (file, first) in enumerate(zip(files, firsts, strict=True)):
            last[file] = max(last.get(file, 0), first + int(dataset.lengths[episode]))
            work.append((camera, episode))
    done = 0

    def looked(item: tuple[str, int]) -> None:
        nonlocal done
        camera, episode = item
        length = int(dataset.lengths[episode])
        image = dataset.frames(episode, camera, sorted({0, length // 2, length - 1}))
        done += 1
        progress(done, len(work) + len(last) * full)
        declared = tuple(dataset.features.get(IMAGE_PREFIX + camera, {}).get("shape") or ())
        if declared and tuple(sorted(declared)) != tuple(sorted(image.shape[1:])):
            raise ArtifactError(
                f"'{dataset.index.videos[camera][0][episode]}' has pictures of {list(image.shape[1:])}, meta/info.json says "
                f"{list(declared)}. Correct the entry or encode the video again."
            )

    def decoded(item: tuple[Path, int]) -> None:
        nonlocal done
        check_frames(*item, dataset.fps)
        done += 1
        progress(done, len(work) + len(last))

    found = side_by_side(told(looked), work)
    found += side_by_side(told(decoded), last.items()) if full else []
    return list(dict.fromkeys(message for message in found if message))


def _notes(dataset: Dataset) -> list[str]:
    found = []
    for name, what in ((STATE, "state"), (ACTION, "action")):
        values = dataset.index.vectors[name]
        still = np.flatnonzero(values.max(0) - values.min(0) < _LEAST_RANGE)
        if len(still):
            names = dataset.features[name].get("names") or []
            listed = ", ".join(str(names[i]) if i < len(names) else str(i) for i in still)
            found.append(f"These numbers of the {what} never move: {listed}.")
    unused = [task for number, task in enumerate(dataset.tasks) if not (dataset.index.task_index == number).any()]
    if unused:
        found.append(f"No episode has the task {', '.join(map(repr, unused))}.")
    return found

"""Read a LeRobot dataset: numbers of all episodes in memory, frames decoded on demand.

`Dataset.open` checks that every file is there, whole and consistent, so that training fails in its first second and not
after an hour.  Two layouts are known, v3.0 and v2.1 (`lerobot_v3_index`, `lerobot_v21_index`); each returns an `Index`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import ArtifactError, ContractError
from edgewam.data import lerobot_v3_index, lerobot_v21_index
from edgewam.data.index import Index
from edgewam.data.key_map import KeyMap
from edgewam.data.lerobot_v3 import VERSION
from edgewam.data.schema import ACTION, ENVIRONMENT, STATE, Floats, Images
from edgewam.data.video import decode_frames

_FIELD, _WIDTH = re.compile("[a-z_]+"), re.compile(r"(0\dd)?")  # of a path template: {episode_index:06d}
_MAX_FPS = 100_000  # above it is no control rate, but a mistake (or infinity)


@dataclass(frozen=True)
class Dataset:
    """Episodes of synchronous states, actions and camera frames; row t of each belongs to control step t."""

    path: Path
    index: Index

    @staticmethod
    def open(path: Path | str, keys: KeyMap | None = None) -> Dataset:
        """Open and check a dataset directory, or a list of datasets that `join` wrote.

        Args:
            path: the directory.
            keys: names of state, action and cameras; by default those stored in the dataset, and rules for the rest.

        Raises:
            ArtifactError: missing, unfinished, truncated, inconsistent or of a foreign layout; the message says what to do.
        """
        path = Path(path)
        if (path / "join.json").exists():
            from edgewam.data.join import open_join  # it opens datasets itself

            return open_join(path)
        info, keys = read_info(path), KeyMap.stored(path) if keys is None else keys
        version = info.get("codebase_version")
        if version == VERSION:
            return Dataset(path, lerobot_v3_index.read_index(path, info, keys))
        if version in lerobot_v21_index.VERSIONS:
            return Dataset(path, lerobot_v21_index.read_index(path, info, keys))
        raise ArtifactError(
            f"'{path}' has the LeRobot layout '{version}'; this version reads "
            f"{', '.join(lerobot_v21_index.VERSIONS)} and {VERSION}. Convert it with lerobot."
        )

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self.index.lengths)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Control steps per episode, int64 [num_episodes]."""
        return self.index.lengths

    @property
    def fps(self) -> int:
        """Control steps (and stored frames) per second."""
        return int(self.index.info["fps"])

    @property
    def camera_hz(self) -> int:
        """Deliveries per second of the real cameras; fps where the dataset does not say."""
        return int(self.index.info.get("edgewam", {}).get("camera_hz", self.fps))

    @property
    def provenance(self) -> dict[str, Any]:
        """How the dataset was made, as its writer recorded it; empty for foreign datasets."""
        return dict(self.index.info.get("edgewam", {}).get("provenance", {}))

    @property
    def seeds(self) -> list[int]:
        """The scene seed of each episode; empty for foreign datasets."""
        return list(self.index.info.get("edgewam", {}).get("seeds", []))

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        """Feature entries of meta/info.json; state, action and cameras under our names."""
        return dict(self.index.info["features"])

    @property
    def stats(self) -> dict[str, dict[str, Any]]:
        """meta/stats.json: per feature min, max, mean, std, count and quantiles (v2.1 keeps them per episode, elsewhere)."""
        return dict(_read_json(self.path / "meta/stats.json"))

    @property
    def cameras(self) -> tuple[str, ...]:
        """Camera names, ours where a key map or the rules know them."""
        return tuple(self.index.videos)

    @property
    def state_dim(self) -> int:
        """Numbers in a state."""
        return int(self.index.vectors[STATE].shape[1])

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return int(self.index.vectors[ACTION].shape[1])

    def check_fits(self, whose: str, state_dim: int, action_dim: int, fps: int | None = None) -> None:
        """Raise ContractError unless states, actions and (where it is known) the rate are those of what `whose` names."""
        for what, there, here in (
            ("numbers in a state", state_dim, self.state_dim),
            ("numbers in an action", action_dim, self.action_dim),
            ("control steps a second", fps, self.fps),
        ):
            if there is not None and there != here:
                raise ContractError(f"'{self.path}' has {here} {what}, {whose} {there}. Give data of the same robot and rate.")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task texts in the order of `task_index`."""
        return self.index.tasks

    @cached_property
    def digest(self) -> str:
        """Identity of the content: the manifest's digest, or a hash over the metadata of a foreign dataset."""
        return self.index.digest(self.path)

    def task(self, episode: int) -> str:
        """Task text of one episode."""
        return self.tasks[int(self.index.task_index[self._check(episode)])]

    def states(self, episode: int) -> Floats:
        """observation.state, float32 [T, D]."""
        return self._rows(STATE, episode)

    def actions(self, episode: int) -> Floats:
        """Action targets, float32 [T, D]."""
        return self._rows(ACTION, episode)

    def environment_states(self, episode: int) -> Floats:
        """observation.environment_state (privileged), float32 [T, E]; ContractError where it was not recorded."""
        return self._rows(ENVIRONMENT, episode)

    def frames(self, episode: int, camera: str, indices: Sequence[int] | npt.NDArray[np.int64]) -> Images:
        """Camera frames at episode-relative control steps, any order, repeats allowed: uint8 [n, H, W, 3] RGB."""
        if camera not in self.cameras:
            raise ContractError(f"No camera '{camera}' in '{self.path}'. Available: {', '.join(self.cameras)}.")
        steps = np.asarray(indices, np.int64).reshape(-1)
        length = int(self.lengths[self._check(episode)])
        if len(steps) == 0 or steps.min() < 0 or steps.max() >= length:
            raise ContractError(f"Frames of episode {episode} are 0..{length - 1}, asked for {steps.tolist()}.")
        files, first_frames = self.index.videos[camera]
        return decode_frames(files[episode], (steps + first_frames[episode]).tolist(), self.fps)

    def camera_frame(self, index: int | npt.NDArray[np.int64]) -> Any:
        """The control step whose frame `index` repeats: several steps share one delivery when cameras are slower than control."""
        hold = self.fps // self.camera_hz
        return index // hold * hold

    def _check(self, episode: int) -> int:
        if not 0 <= episode < self.num_episodes:
            raise ContractError(f"'{self.path}' has episodes 0..{self.num_episodes - 1}, asked for {episode}.")
        return episode

    def _rows(self, feature: str, episode: int) -> Floats:
        if feature not in self.index.vectors:
            raise ContractError(f"'{self.path}' has no feature '{feature}'. Available: {', '.join(self.index.vectors)}.")
        start = int(self.index.starts[self._check(episode)])
        return self.index.vectors[feature][start : start + int(self.lengths[episode])]


def open_demonstrations(path: Path | str) -> Dataset:
    """A dataset to imitate.

    Raises:
        ArtifactError: what `Dataset.open` refuses, or it holds episodes that a policy played, mistakes included.
    """
    dataset = Dataset.open(path)
    if _played_by_policy(dataset.provenance):
        raise ArtifactError(
            f"'{path}' holds episodes that a policy played, mistakes included. They are for edgewam distill; "
            "train on demonstrations."
        )
    return dataset


def _played_by_policy(provenance: Mapping[str, Any]) -> bool:
    return "policy" in provenance or any(map(_played_by_policy, provenance.get("joined", ())))


def read_info(path: Path) -> Mapping[str, Any]:
    """meta/info.json of a dataset; ArtifactError says what a path without one is."""
    if not (path / "meta/info.json").exists():
        parts = path.parent / f"{path.name}.parts"
        if parts.exists():
            raise ArtifactError(
                f"'{path}' is an unfinished collection (episodes in '{parts}'). Run the same collect command again to finish it."
            )
        what = "is no LeRobot dataset: it has no meta/info.json" if path.exists() else "does not exist"
        raise ArtifactError(f"'{path}' {what}. Record one with: edgewam collect")
    info = _read_json(path / "meta/info.json")
    if missing := [key for key in ("codebase_version", "fps", "features", "total_episodes", "total_frames") if key not in info]:
        raise ArtifactError(
            f"'{path / 'meta/info.json'}' lacks {', '.join(missing)}: it is no LeRobot dataset. Give another path."
        )
    if wrong := _wrong_entry(info):
        raise ArtifactError(f"'{path / 'meta/info.json'}': {wrong}. Correct it or copy the dataset again.")
    fps = info["fps"]
    if not 0 < fps < _MAX_FPS or fps != int(fps):
        raise ArtifactError(
            f"'{path / 'meta/info.json'}' has fps {fps!r}; a control rate is a whole number of steps per second. "
            "Resample the dataset."
        )
    return info


def _wrong_entry(info: Mapping[str, Any]) -> str | None:
    """What of meta/info.json has a type that no reader could use."""
    types: dict[str, Any] = {"fps": int | float, "total_episodes": int, "total_frames": int, "chunks_size": int}
    types |= {"codebase_version": str, "data_path": str | None, "video_path": str | None, "features": dict}
    for name, kind in types.items():
        if name in info and not isinstance(info[name], kind):
            return f"'{name}' is {info[name]!r}"
    if info.get("chunks_size", 1) < 1:
        return f"'chunks_size' is {info['chunks_size']}"
    for name in ("data_path", "video_path"):
        if not _is_path_inside(info.get(name) or "data"):
            return f"'{name}' is {info[name][:100]!r}, which is no path in the dataset"
    for name, entry in info["features"].items():
        if "/" in name:
            return f"a feature is called '{name}'"
        shape = entry.get("shape") if isinstance(entry, dict) else ()
        sizes = isinstance(shape, list) and all(isinstance(size, int) and size > 0 for size in shape)
        if not isinstance(entry, dict) or not isinstance(entry.get("info") or {}, dict) or not (shape is None or sizes):
            return f"the feature '{name}' is {entry!r}"
    return None


def _is_path_inside(template: str) -> bool:
    """Whether a template makes only paths in the dataset, of numbers and names without further formatting."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        return False
    plain = all(
        field is None or (_FIELD.fullmatch(field) and _WIDTH.fullmatch(spec or "") and conversion is None)
        for _, field, spec, conversion in parts
    )
    return plain and not template.startswith("/") and ".." not in template.split("/")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"Cannot read '{path}': {error}. Copy or collect the dataset again.") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"'{path}' holds no JSON object. Copy or collect the dataset again.")
    return data

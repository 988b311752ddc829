"""Complete episodes on disk while a collection is under way: one directory per kept seed, one empty file per dropped seed.

An entry appears by rename, so a kill at any moment loses at most the episode being recorded, and the next run goes on
with the first seed that has no entry.  `lerobot_v3.write_dataset` turns a store into a dataset.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgewam.core.artifacts import replaced_directory, write_json
from edgewam.core.errors import ArtifactError
from edgewam.data.episode_stats import Histogram, image_histogram
from edgewam.data.schema import Episode, Floats, Schema
from edgewam.data.video import encode_video

PLAN = "plan.json"
_KEPT, _DROPPED = "seed_", "dropped_"
_MEASURED_EVERY_S = 0.08  # image statistics look at 12.5 frames per second; neighbours hardly differ


@dataclass(frozen=True)
class StoredEpisode:
    """One complete episode in a store.  `num_measured` frames per camera went into the image histograms."""

    directory: Path
    seed: int
    length: int
    task: str
    num_measured: int

    def arrays(self) -> tuple[dict[str, Floats], dict[str, Histogram]]:
        """Vectors by feature name (float32 [T, D]) and pixel histograms by camera (int64 [3, 256])."""
        try:
            with np.load(self.directory / "arrays.npz", allow_pickle=False) as data:
                loaded = {name: data[name] for name in data.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"Cannot read '{self.directory}': {error}. Delete that directory and collect again.") from error
        histograms = {name.removeprefix("histogram/"): loaded.pop(name) for name in list(loaded) if name.startswith("histogram/")}
        return loaded, histograms

    def video(self, camera: str) -> Path:
        """The camera's mp4 of exactly `length` frames."""
        return self.directory / f"{camera}.mp4"


class EpisodeStore:
    """The staging directory of one collection.  `settings` is whatever must not change between two runs of it."""

    def __init__(self, directory: Path, schema: Schema, settings: Mapping[str, Any]) -> None:
        """Create the directory or reopen it.

        Raises:
            ArtifactError: it was begun with another schema or other settings; the message names them.
        """
        self.directory, self.schema = directory, schema
        directory.mkdir(parents=True, exist_ok=True)
        plan = json.loads(json.dumps({"schema": schema.to_json(), "settings": dict(settings)}))
        if not (directory / PLAN).exists():
            write_json(directory / PLAN, plan)
        try:
            before = json.loads((directory / PLAN).read_text())
        except ValueError as error:
            raise ArtifactError(f"'{directory / PLAN}' is damaged: {error}. Delete '{directory}' and collect again.") from error
        if before != plan:
            old, new = _flatten(before), _flatten(plan)
            changed = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in sorted(old | new) if old.get(key) != new.get(key)]
            raise ArtifactError(
                f"'{directory}' holds an unfinished collection with other settings ({'; '.join(changed)}). "
                "Run it with the same settings, choose another output, or delete that directory."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store for this process; the lock dies with the process."""
        with open(self.directory / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ArtifactError(f"Another process is collecting into '{self.directory}'. Wait for it or stop it.") from None
            yield

    def add(self, seed: int, episode: Episode) -> None:
        """Check and store one episode.

        Raises:
            ContractError: wrong shapes or non-finite values; the message names the seed and the column.
        """
        self.schema.check(episode, f"Episode of seed {seed}")
        stride = max(1, round(_MEASURED_EVERY_S * self.schema.fps))
        with replaced_directory(self._kept(seed)) as directory:
            arrays: dict[str, Any] = dict(self.schema.arrays(episode))
            for name in self.schema.cameras:
                images = episode.images[name]
                encode_video(directory / f"{name}.mp4", images, self.schema.fps)
                arrays[f"histogram/{name}"] = image_histogram(images[::stride])
            np.savez(directory / "arrays.npz", **arrays)
            num_measured = -(-len(episode) // stride)
            facts = {"seed": seed, "length": len(episode), "task": episode.task, "num_measured": num_measured}
            write_json(directory / "episode.json", facts)

    def drop(self, seed: int) -> None:
        """Remember that this seed gave no usable episode."""
        (self.directory / f"{_DROPPED}{seed:09d}").touch()

    def episodes(self) -> list[StoredEpisode]:
        """Every complete episode by rising seed."""
        found = []
        for directory in sorted(self.directory.glob(f"{_KEPT}*")):
            try:
                facts = json.loads((directory / "episode.json").read_text())
            except (OSError, ValueError) as error:
                raise ArtifactError(f"'{directory}' is damaged: {error}. Delete that directory and collect again.") from error
            found.append(StoredEpisode(directory, **facts))
        return found

    def num_episodes(self) -> int:
        """Complete episodes so far, without reading them."""
        return sum(1 for _ in self.directory.glob(f"{_KEPT}*"))

    def num_dropped(self, before_seed: int | None = None) -> int:
        """Seeds tried without success (below `before_seed`, when given)."""
        seeds = [int(path.name.removeprefix(_DROPPED)) for path in self.directory.glob(f"{_DROPPED}*")]
        return sum(1 for seed in seeds if before_seed is None or seed < before_seed)

    def next_seed(self, first_seed: int) -> int:
        """The first seed from `first_seed` on that was neither kept nor dropped."""
        seed = first_seed
        while self._kept(seed).exists() or (self.directory / f"{_DROPPED}{seed:09d}").exists():
            seed += 1
        return seed

    def remove(self) -> None:
        """Delete the whole store, after its episodes became a dataset."""
        shutil.rmtree(self.directory)

    def _kept(self, seed: int) -> Path:
        return self.directory / f"{_KEPT}{seed:09d}"


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {key: leaf for name, item in value.items() for key, leaf in _flatten(item, f"{prefix}.{name}".lstrip(".")).items()}

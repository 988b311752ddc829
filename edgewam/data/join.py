"""Several datasets as one, such as one per task: a list of paths and digests on disk, one `Index` in memory, no copies.

Episodes take turns in proportion, so that any part of a joined dataset (such as the held-out end) shows every task.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgewam.core.artifacts import read_manifest, write_artifact, write_json
from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.data.dataset import Dataset
from edgewam.data.index import Index
from edgewam.data.schema import ENVIRONMENT

JOIN = "join.json"


def join(out: Path | str, paths: Sequence[Path | str]) -> Dataset:
    """Write the list `out` and open it.

    Raises:
        EdgewamError: fewer than two datasets, one twice, or datasets of other rates, cameras or joints than the first.
    """
    datasets = [Dataset.open(path) for path in paths]
    if len({dataset.digest for dataset in datasets}) != len(paths) or len(paths) < 2:
        raise EdgewamError("Give at least two datasets, each once.")
    _joined(Path(out), datasets)
    parents = {f"dataset_{number}": dataset.digest for number, dataset in enumerate(datasets)}
    with write_artifact(Path(out), "dataset", config={"joined": len(datasets)}, parents=parents) as directory:
        entries = [
            {"path": os.path.relpath(dataset.path.resolve(), Path(out).resolve()), "digest": dataset.digest}
            for dataset in datasets
        ]
        write_json(directory / JOIN, {"datasets": entries})
    return open_join(Path(out))


def open_join(path: Path) -> Dataset:
    """Open a list that `join` wrote.

    Raises:
        ArtifactError: a damaged list, or a dataset that is gone or another one.
    """
    read_manifest(path, kind="dataset")
    datasets = []
    for entry in json.loads((path / JOIN).read_text())["datasets"]:
        dataset = Dataset.open(path / entry["path"])
        if dataset.digest != entry["digest"]:
            raise ArtifactError(f"'{dataset.path}' is not the dataset that '{path}' was made of. Join the datasets again.")
        datasets.append(dataset)
    return _joined(path, datasets)


def _joined(path: Path, datasets: Sequence[Dataset]) -> Dataset:
    first = datasets[0]
    for other in datasets[1:]:
        if (other.fps, other.camera_hz) != (first.fps, first.camera_hz):
            raise EdgewamError(
                f"'{other.path}' has {other.fps} steps and {other.camera_hz} frames a second, '{first.path}' {first.fps} and "
                f"{first.camera_hz}. Join datasets of one robot."
            )
        for name, entry in first.features.items():
            if name != ENVIRONMENT and other.features.get(name) != entry:
                raise EdgewamError(f"'{other.path}' and '{first.path}' differ in feature '{name}'. Join datasets of one robot.")
    order = _in_turn([dataset.num_episodes for dataset in datasets])
    tasks = tuple(dict.fromkeys(task for dataset in datasets for task in dataset.tasks))
    numbers = {task: number for number, task in enumerate(tasks)}
    offsets = np.concatenate([[0], np.cumsum([len(next(iter(d.index.vectors.values()))) for d in datasets])])
    vectors = {
        name: np.concatenate([d.index.vectors[name] for d in datasets]) for name in first.index.vectors if name != ENVIRONMENT
    }
    features = dict(first.features)
    features.pop(ENVIRONMENT, None)
    if all(ENVIRONMENT in dataset.index.vectors for dataset in datasets):
        # things differ from task to task; what they share is the first one's pose
        shared = min(dataset.index.vectors[ENVIRONMENT].shape[1] for dataset in datasets)
        vectors[ENVIRONMENT] = np.concatenate([dataset.index.vectors[ENVIRONMENT][:, :shared] for dataset in datasets])
        names = [f"column_{number}" for number in range(shared)]
        features[ENVIRONMENT] = {**first.features[ENVIRONMENT], "shape": [shared], "names": names}
    index = Index(
        info=_info([dataset.index.info for dataset in datasets], datasets, features, order),
        lengths=np.array([datasets[d].lengths[e] for d, e in order], np.int64),
        starts=np.array([offsets[d] + datasets[d].index.starts[e] for d, e in order], np.int64),
        task_index=np.array([numbers[datasets[d].task(e)] for d, e in order], np.int64),
        tasks=tasks,
        vectors=vectors,
        videos={camera: _videos(datasets, camera, order) for camera in first.cameras},
    )
    return Dataset(path, index)


def _in_turn(counts: Sequence[int]) -> list[tuple[int, int]]:
    """(dataset, episode) of every episode, each dataset spread evenly over the whole."""
    places = [((episode + 0.5) / count, dataset, episode) for dataset, count in enumerate(counts) for episode in range(count)]
    return [(dataset, episode) for _, dataset, episode in sorted(places)]


def _videos(datasets: Sequence[Dataset], camera: str, order: Sequence[tuple[int, int]]) -> tuple[list[Path], list[int]]:
    found = [dataset.index.videos[camera] for dataset in datasets]
    return [found[d][0][e] for d, e in order], [found[d][1][e] for d, e in order]


def _info(
    infos: Sequence[Mapping[str, Any]],
    datasets: Sequence[Dataset],
    features: Mapping[str, Any],
    order: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    totals = {name: sum(info[name] for info in infos) for name in ("total_episodes", "total_frames")}
    seeds = [dataset.seeds for dataset in datasets]
    own = {
        "camera_hz": datasets[0].camera_hz,
        "provenance": {"joined": [dataset.provenance for dataset in datasets]},
        "seeds": [seeds[d][e] for d, e in order] if all(seeds) else [],
    }
    return {**infos[0], **totals, "features": dict(features), "edgewam": own}

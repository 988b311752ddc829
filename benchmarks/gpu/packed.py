"""A training set in one .npz: cached latents, states, actions and statistics, for a machine that has no video decoder.

It stands in for a dataset where windows are drawn: `PackedDataset` has exactly what `edgewam.data.windows` and
`edgewam.training.windows` read.  Latents are half precision as in the cache itself, so nothing is lost.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgewam.core.artifacts import replaced_file
from edgewam.core.errors import EdgewamError
from edgewam.core.observation import Normalizer
from edgewam.data.schema import ACTION, STATE
from edgewam.data.stats import DatasetStats
from edgewam.training.latents import LatentCache, LatentPlan

FORMAT = 1


class PackedDataset:
    """Episodes without pictures: lengths, tasks, states and actions."""

    def __init__(self, lengths: np.ndarray, tasks: Sequence[str], states: np.ndarray, actions: np.ndarray) -> None:
        self.lengths = lengths
        self.tasks = tuple(dict.fromkeys(tasks))
        self.num_episodes = len(lengths)
        self.index = SimpleNamespace(starts=np.cumsum(lengths) - lengths, vectors={STATE: states, ACTION: actions})
        self._task_of = list(tasks)

    def task(self, episode: int) -> str:
        """Instruction of one episode."""
        return self._task_of[episode]


@dataclass(frozen=True)
class Packed:
    """What a training needs: dataset, latent cache, statistics, and where it came from."""

    dataset: PackedDataset
    cache: LatentCache
    stats: DatasetStats
    origin: dict[str, Any]


def write_packed(path: Path, dataset: Any, cache: LatentCache, stats: DatasetStats, episodes: int, origin: dict[str, Any]) -> int:
    """Pack the first `episodes` of a dataset with its cache; returns the size in bytes.

    `dataset` is an `edgewam.data` dataset or a `PackedDataset`.
    """
    lengths = np.asarray(dataset.lengths[:episodes], np.int64)
    rows = int(lengths.sum())
    kept = cache.window_episode < episodes
    frames = int((-(-lengths // cache.hold)).sum())
    header = {
        "format": FORMAT,
        "tasks": [dataset.task(episode) for episode in range(episodes)],
        "plan": asdict(cache.plan),
        "hold": cache.hold,
        "origin": origin,
    }
    arrays = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "lengths": lengths,
        "states": dataset.index.vectors[STATE][:rows],
        "actions": dataset.index.vectors[ACTION][:rows],
        "images": np.asarray(cache.images[:frames]),
        "clips": np.asarray(cache.clips[kept]),
        "frame_starts": cache.frame_starts[:episodes],
        "window_episode": cache.window_episode[kept],
        "window_step": cache.window_step[kept],
        "state_mean_std": np.stack([stats.state.mean, stats.state.std]),
        "action_mean_std": np.stack([stats.action.mean, stats.action.std]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    return path.stat().st_size


def read_packed(path: Path) -> Packed:
    """Read a packed training set (no pickle).

    Raises:
        EdgewamError: missing, damaged or of another format.
    """
    try:
        # opened here: np.load leaves a damaged archive open
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
        header = json.loads(data["header"].tobytes())
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}, this version reads {FORMAT}")
        dataset = PackedDataset(data["lengths"], header["tasks"], data["states"], data["actions"])
        cache = LatentCache(
            data["images"], data["clips"], data["frame_starts"], data["window_episode"], data["window_step"], header["hold"],
            LatentPlan(**header["plan"]),
        )  # fmt: skip
        stats = DatasetStats(Normalizer(*data["state_mean_std"]), Normalizer(*data["action_mean_std"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise EdgewamError(f"Cannot read '{path}': {error}. Pack it again: python3 -m benchmarks.gpu.pack_dataset") from error
    return Packed(dataset, cache, stats, header["origin"])


def synthetic(path: Path, episodes: int, length: int, seed: int = 0, cell: tuple[int, int, int] = (48, 12, 10)) -> int:
    """Pack random episodes of `length` control steps: for trying the code, not for learning anything."""
    generator = np.random.default_rng(seed)
    hold, plan = 2, LatentPlan(height=16 * cell[1], width=16 * cell[2])
    lengths = np.full(episodes, length, np.int64)
    frames = -(-length // hold)
    starts = np.arange(0, length, plan.start_stride)
    later = (plan.clip_frames - 1) // 4

    def draw(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, np.float32)

    dataset = PackedDataset(lengths, ["a random task"] * episodes, draw(episodes * length, 14), draw(episodes * length, 14))
    cache = LatentCache(
        draw(episodes * frames, *cell).astype(np.float16),
        draw(episodes * len(starts), cell[0], later, *cell[1:]).astype(np.float16),
        frames * np.arange(episodes),
        np.repeat(np.arange(episodes), len(starts)),
        np.tile(starts, episodes),
        hold,
        plan,
    )
    unit = Normalizer(np.zeros(14, np.float32), np.ones(14, np.float32))
    return write_packed(path, dataset, cache, DatasetStats(unit, unit), episodes, {"synthetic": True, "seed": seed})


def ignore_itself(path: Path) -> None:
    """Keep a packed file's folder `.gpu_data` out of git: it is carried to a lent machine by name, never committed."""
    ignore = path.parent / ".gitignore"
    if path.parent.name == ".gpu_data" and not ignore.exists():
        ignore.write_text("*\n")

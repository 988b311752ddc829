"""Small episodes with known content, and stores and datasets made of them."""

from pathlib import Path

import numpy as np

from edgewam.data.dataset import Dataset
from edgewam.data.episode_store import EpisodeStore
from edgewam.data.index import Index
from edgewam.data.lerobot_v3 import write_dataset
from edgewam.data.schema import ACTION, ENVIRONMENT, STATE, Episode, Schema

CAMERAS = {"cam_high": (32, 48), "cam_left_wrist": (16, 24), "cam_right_wrist": (16, 24)}
JOINTS = tuple(f"joint_{i}" for i in range(14))
SCHEMA = Schema("fake_arm", 50, 25, CAMERAS, JOINTS, tuple(f"cube_{i}" for i in range(7)))
TASKS = ("hand the cube over", "stack the cups")


def picture(height, width, step, seed, hold=2):
    """Smooth background, a block that moves with the (held) step: codecs keep it, and no two steps look alike."""
    rows, columns = np.mgrid[:height, :width]
    step = step // hold * hold
    image = np.stack([rows * 4 + seed * 9, columns * 3, np.full_like(rows, 40 + step % 150)], -1).clip(0, 255).astype(np.uint8)
    left = step // 2 % (width - 6)
    image[height // 3 : height // 3 + 6, left : left + 6] = (230, 30, 20)
    return image


def episode(length=23, seed=0, task=TASKS[0]):
    rng = np.random.default_rng([7, seed])
    vectors = {name: rng.normal(size=(length, size)).astype(np.float32) for name, size in (("s", 14), ("a", 14), ("e", 7))}
    images = {name: np.stack([picture(*size, step, seed) for step in range(length)]) for name, size in CAMERAS.items()}
    return Episode(vectors["s"], vectors["a"], images, task, vectors["e"])


def three_episodes():
    return [episode(23, 0), episode(40, 1, TASKS[1]), episode(1, 2)]


def psnr(a, b):
    """Peak signal-to-noise ratio of each picture [T, H, W, 3], decibels."""
    error = ((a.astype(np.float64) - b) ** 2).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 1e-9))


def store_of(path, episodes, schema=SCHEMA):
    store = EpisodeStore(path, schema, {})
    for number, one in enumerate(episodes):
        store.add(100 + number, one)
    return store


def dataset_of(path, episodes, limits=None):
    store = store_of(path.parent / f"{path.name}.parts", episodes)
    write_dataset(path, SCHEMA, store.episodes(), {"style": "synthetic"}, limits)
    store.remove()
    return Dataset.open(path)


def numbers_only(lengths, hold=1):
    """A dataset in memory, without videos: state of step t of episode e is e + t / 1000 in every joint."""
    lengths = np.array(lengths, np.int64)
    starts = np.cumsum(lengths) - lengths
    rows = np.concatenate([e + np.arange(n) / 1000 for e, n in enumerate(lengths)]).astype(np.float32)
    vectors = {STATE: np.repeat(rows[:, None], 14, 1), ACTION: -np.repeat(rows[:, None], 14, 1), ENVIRONMENT: rows[:, None]}
    info = {"fps": 50, "features": {}, "edgewam": {"camera_hz": 50 // hold}}
    return Dataset(Path("in-memory"), _MemoryIndex(info, lengths, starts, np.zeros(len(lengths), np.int64), ("t",), vectors, {}))


class _MemoryIndex(Index):
    def digest(self, root):
        return f"memory-{self.lengths.tolist()}"

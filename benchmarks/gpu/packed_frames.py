"""Camera canvases of a dataset in one small file, for machines that have no video decoder: lossless, differences in time.

    python3 -m benchmarks.gpu.packed_frames --dataset DIR [--frames 1000] [--out .gpu_data/frames.npz]

Neighbours of one episode differ little, so differences (modulo 256) compress to a tenth; the folder ignores itself.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.packed import ignore_itself
from edgewam.core.artifacts import replaced_file
from edgewam.core.errors import EdgewamError

FORMAT = 1
MAX_MB = 40.0


@dataclass(frozen=True)
class Frames:
    """Canvases uint8 [N, H, W, 3] and where they come from."""

    images: npt.NDArray[np.uint8]
    origin: str
    real: bool


def write_frames(path: Path, images: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], origin: str) -> int:
    """Write canvases [N, H, W, 3]; `starts` are the indices at which an episode begins, 0 first.  Returns the bytes.

    Raises:
        EdgewamError: the file would be larger than may be carried; nothing is written.
    """
    steps = np.diff(images, axis=0, prepend=np.zeros_like(images[:1]))
    steps[starts] = images[starts]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as temporary:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, format=FORMAT, steps=steps, starts=starts, origin=np.frombuffer(origin.encode(), np.uint8))
        if (size := temporary.stat().st_size) > MAX_MB * 1e6:
            raise EdgewamError(f"{len(images)} frames take {size / 1e6:.0f} MB, more than {MAX_MB:.0f}. Ask for fewer frames.")
    return size


def read_frames(path: Path) -> Frames:
    """Read what `write_frames` wrote.

    Raises:
        EdgewamError: missing, damaged or of another format.
    """
    try:
        # opened here: np.load leaves a damaged archive open
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
        if int(data["format"]) != FORMAT:
            raise ValueError(f"format {int(data['format'])}, this version reads {FORMAT}")
        steps, bounds = data["steps"], [*data["starts"].tolist(), len(data["steps"])]
        for start, end in pairwise(bounds):
            np.cumsum(steps[start:end], axis=0, dtype=np.uint8, out=steps[start:end])
        return Frames(steps, data["origin"].tobytes().decode(), real=True)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise EdgewamError(f"Cannot read '{path}': {error}. Pack it again: python3 -m benchmarks.gpu.packed_frames") from error


def collect_frames(dataset_path: Path, count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], str]:
    """Canvases of the policy `small` evenly from all episodes of a dataset, where episodes start, and the dataset's name.

    Raises:
        EdgewamError: the dataset holds fewer camera frames.
    """
    from edgewam.data.dataset import Dataset
    from edgewam.models.aha_wam_config import small
    from edgewam.training.frames import compose_episode

    config, dataset = small(), Dataset.open(dataset_path)
    hold = dataset.fps // dataset.camera_hz
    available = [len(range(0, int(length), hold)) for length in dataset.lengths]
    if sum(available) < count:
        raise EdgewamError(f"The dataset holds {sum(available)} frames, {count} were asked for. Collect more episodes.")
    wanted = np.diff(np.round(np.linspace(0, count, dataset.num_episodes + 1))).astype(int)
    images = []
    for episode, (frames, number) in enumerate(zip(available, wanted, strict=True)):
        if number > frames:
            raise EdgewamError(f"Episode {episode} holds {frames} frames, {number} are needed of it. Collect more episodes.")
        steps = hold * np.arange(frames, dtype=np.int64)[np.linspace(0, frames - 1, number).round().astype(int)]
        images.append(compose_episode(dataset, episode, steps, config.image_height, config.image_width))
    starts = np.cumsum([0, *map(len, images[:-1])])
    return np.concatenate(images), starts, f"{dataset.num_episodes} episodes, dataset {dataset.digest[:12]}"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu.packed_frames", description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="LeRobot v3.0 dataset (edgewam collect)")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(".gpu_data/frames.npz"))
    a = parser.parse_args()
    try:
        images, starts, origin = collect_frames(a.dataset, a.frames)
        size = write_frames(a.out, images, starts, origin)
    except EdgewamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ignore_itself(a.out)
    print(
        f"{a.out}: {len(images)} frames, {size / 1e6:.1f} MB. Run: python3 -m benchmarks.gpu --only vae_parity --frames {a.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

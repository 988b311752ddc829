"""How many training windows a second the frame loader delivers, and where their time goes.

    python3 -m benchmarks.loader [--processes 0 1 2] [--batches 12] [--batch-size 6] [--step-s 0.5]

Data that it makes itself in a temporary folder: three cameras over moving texture, as RoboTwin's copies on the net store
them (a key frame at every second frame).  Windows are those of released AHA-WAM training.  The loader has nothing to wait for
here, so the figures are what it can give; `needed` is what one GPU takes that makes a step of --batch-size windows in --step-s
seconds (assumed, until it is measured).
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.results import RESULTS, Record, Section, now_utc, slug, write_record
from edgewam.core.errors import EdgewamError, require
from edgewam.core.records import CAMERAS
from edgewam.data.dataset import Dataset
from edgewam.data.frame_windows import Canvas, FrameLoader, FrameReader
from edgewam.data.index import Index
from edgewam.data.sampler import WindowSampler
from edgewam.data.schema import ACTION, IMAGE_PREFIX, STATE, Images
from edgewam.data.windows import WindowBatch, released_layout
from edgewam.profiles.contract import TimingContract
from edgewam.profiles.machine import read_machine
from edgewam.profiles.measure import Timing
from edgewam.profiles.report import table

FPS, JOINTS = 50, 14
CANVAS = (384, 320)
WARMUP = 2  # batches of each process
SCENE = 2.0  # side of the texture that the cameras look at, in frames


@dataclass(frozen=True)
class Stored:
    """How a dataset keeps its videos: codec, camera size, and whether all episodes share a file (v3.0) or not (v2.1)."""

    encoder: str
    height: int
    width: int
    one_file: bool
    options: dict[str, str]


# options: lerobot's defaults for each codec; crf and key frames are what decoding time depends on
KINDS = {
    "h264_480x640": Stored("libx264", 480, 640, False, {"crf": "23", "g": "2", "preset": "veryfast"}),
    "av1_480x640": Stored("libsvtav1", 480, 640, True, {"crf": "30", "g": "2", "preset": "10"}),
    "h264_240x320": Stored("libx264", 240, 320, False, {"crf": "23", "g": "2", "preset": "veryfast"}),
}


def footage(stored: Stored, seed: int) -> Callable[[int], Images]:
    """Frame number -> uint8 [H, W, 3]: a window that wanders over a fixed texture of several grains."""
    rng = np.random.default_rng(seed)
    height, width = int(stored.height * SCENE), int(stored.width * SCENE)
    scene = np.zeros((height, width, 3), np.float32)
    for grain in (4, 16, 64):
        coarse = rng.normal(size=(-(-height // grain), -(-width // grain), 3)).astype(np.float32)
        scene += np.repeat(np.repeat(coarse, grain, 0), grain, 1)[:height, :width]
    pixels = (128 + 30 * scene).clip(0, 255).astype(np.uint8)

    def frame(number: int) -> Images:
        down, right = (int(room * (0.5 + 0.49 * np.sin(number / 37 + phase))) for room, phase in _rooms(stored))
        return pixels[down : down + stored.height, right : right + stored.width]

    return frame


def _rooms(stored: Stored) -> list[tuple[float, float]]:
    return [(stored.height * (SCENE - 1), 0.0), (stored.width * (SCENE - 1), 1.3)]


def write_video(path: Path, stored: Stored, frames: Iterator[Images]) -> None:
    """Encode with one thread, 4:2:0."""
    av = require("av", extra="train")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(stored.encoder, rate=FPS)
        stream.height, stream.width, stream.pix_fmt = stored.height, stored.width, "yuv420p"
        stream.options = stored.options
        for number, image in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def made_dataset(folder: Path, stored: Stored, episodes: int, steps: int) -> TimedDataset:
    """Episodes of `steps` control steps; every camera films another scene."""
    videos: dict[str, tuple[list[Path], list[int]]] = {}
    for seed, camera in enumerate(CAMERAS):
        numbers = [range(i * steps, (i + 1) * steps) for i in range(episodes)]
        if stored.one_file:
            numbers = [range(episodes * steps)]
        film, paths = footage(stored, seed), [folder / f"{camera}_{i}.mp4" for i in range(len(numbers))]
        for path, part in zip(paths, numbers, strict=True):
            write_video(path, stored, map(film, part))
        videos[camera] = (paths * episodes, [i * steps for i in range(episodes)]) if stored.one_file else (paths, [0] * episodes)
    rows = np.random.default_rng(9).normal(size=(episodes * steps, JOINTS)).astype(np.float32)
    features = {IMAGE_PREFIX + camera: {"dtype": "video", "shape": [stored.height, stored.width, 3]} for camera in CAMERAS}
    starts = np.arange(episodes, dtype=np.int64) * steps
    index = Index(
        info={"fps": FPS, "features": features},
        lengths=np.full(episodes, steps, np.int64),
        starts=starts,
        task_index=np.zeros(episodes, np.int64),
        tasks=("move",),
        vectors={STATE: rows, ACTION: rows},
        videos=videos,
    )
    return TimedDataset(folder, index)


@dataclass(frozen=True)
class TimedDataset(Dataset):
    """A dataset that notes how long it decodes, in seconds, and how many camera frames."""

    decoded: list[tuple[float, int]] = field(default_factory=list)

    def frames(self, episode: int, camera: str, indices: Sequence[int] | npt.NDArray[np.int64]) -> Images:
        """See `Dataset.frames`."""
        began = time.perf_counter()
        found = super().frames(episode, camera, indices)
        self.decoded.append((time.perf_counter() - began, len(found)))
        return found


def parts(sampler: WindowSampler, reader: FrameReader, dataset: TimedDataset, batches: int) -> dict[str, list[float]]:
    """Milliseconds per batch in one process: arrays (windows as numbers), decode, compose (resizes, canvas), and the whole."""
    found: dict[str, list[float]] = {name: [] for name in ("arrays", "decode", "compose", "batch")}
    for number in range(WARMUP + batches):
        dataset.decoded.clear()
        began = time.perf_counter()
        windows = sampler.global_batch(*sampler.place(number))
        ready = time.perf_counter()
        reader.read(windows)
        end = time.perf_counter()
        decode = sum(seconds for seconds, _ in dataset.decoded)
        if number >= WARMUP:
            for name, seconds in zip(found, (ready - began, decode, end - ready - decode, end - began), strict=True):
                found[name].append(1000.0 * seconds)
    return found


def rate(sampler: WindowSampler, reader: FrameReader, processes: int, batches: int) -> float:
    """Windows a second of a running loader."""

    def endless() -> Iterator[WindowBatch]:
        return (sampler.global_batch(*sampler.place(number)) for number in itertools.count())

    stream = FrameLoader(reader, processes).stream(endless())
    # processes deliver in turns: whole turns, and enough of them that it does not matter which batch came first
    turns = max(processes, 1)
    batches = turns * max(6, -(-batches // turns))
    for _ in range(WARMUP * turns):
        next(stream)
    began = time.perf_counter()
    for _ in range(batches):
        next(stream)
    return batches * sampler.batch_size / (time.perf_counter() - began)


def measure(stored: Stored, a: argparse.Namespace) -> Section:
    """One kind of data: parts in this process, then the rate for each number of processes."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = made_dataset(Path(folder), stored, a.episodes, a.steps)
        sampler = WindowSampler(dataset, released_layout(), a.batch_size, seed=0)
        reader = FrameReader(dataset, Canvas(*CANVAS, pixels=a.pixels))
        samples = parts(sampler, reader, dataset, a.batches)
        count = sum(frames for _, frames in dataset.decoded)
        rates = {processes: rate(sampler, reader, processes, a.batches) for processes in a.processes}
    needed = a.batch_size / a.step_s
    best = max(speed / max(processes, 1) for processes, speed in rates.items())
    figures: dict[str, Any] = {f"windows_per_s_{processes}_processes": speed for processes, speed in rates.items()}
    figures["camera_frames_per_s_decoded_alone"] = 1000.0 * count / samples["decode"][-1]
    figures["last_batch_camera_frames"] = count
    figures["last_batch_canvas_mb"] = count / len(CAMERAS) * reader.canvas.num_bytes / 1e6
    figures["needed_windows_per_s_per_gpu"] = needed
    figures["needed_assumes_step_s"] = a.step_s
    figures["needed_processes_per_gpu"] = needed / best
    contract = TimingContract.here(
        engine=f"{stored.encoder}, {'one file' if stored.one_file else 'a file per episode'}, PyAV and torch",
        precision=a.pixels,
        steps=0,
        shapes={"batch": [a.batch_size], "camera": [len(CAMERAS), stored.height, stored.width], "canvas": CANVAS},
        stages=("arrays", "decode", "compose"),
        host_copies=False,
        threads=torch.get_num_threads(),
        warmup=WARMUP,
        n=a.batches,
        notes="parts: one process; rates: torch threads of a loading process are 1",
    )
    return Section(contract, figures, {name: Timing.from_samples(ms) for name, ms in samples.items()})


def text(record: Record) -> str:
    """A line per part and figure, a column per kind of data."""
    first = next(iter(record.sections.values()))
    rows = [["", *record.sections]]
    for name in first.timings:
        rows.append([f"{name} ms, p50", *(f"{section.timings[name].p50_ms:.1f}" for section in record.sections.values())])
    for name in first.figures:
        rows.append([name.replace("_", " "), *(f"{section.figures[name]:.3g}" for section in record.sections.values())])
    return "\n".join([first.contract.text(), table(rows)])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.loader", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[0, 1, 2], help="loading processes; 0: in this one")
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="may be repeated; by default every kind")
    parser.add_argument("--batches", type=int, default=12, help="timed, per figure")
    parser.add_argument("--batch-size", type=int, default=6, help="windows; 6 per GPU is the released recipe")
    parser.add_argument("--step-s", type=float, default=0.5, help="assumed seconds of a training step on one GPU")
    parser.add_argument("--pixels", choices=["bfloat16", "float32", "uint8"], default="bfloat16")
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500, help="control steps of an episode")
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: benchmarks/results/<device>)")
    a = parser.parse_args(argv)
    started, clock = now_utc(), time.monotonic()
    try:
        sections = {}
        for name in a.kind or KINDS:
            print(name, file=sys.stderr, flush=True)
            sections[name] = measure(KINDS[name], a)
    except EdgewamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    params = {name: value for name, value in vars(a).items() if name not in ("out", "kind")}
    record = Record("loader", "made-data", "ok", read_machine().cpu, started, time.monotonic() - clock, params, sections)
    print(text(record))
    print(f"Written to {write_record(a.out or RESULTS / slug(record.device), record)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

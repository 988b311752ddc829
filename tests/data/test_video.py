"""What a dataset's digest stands on: equal frames are equal bytes."""

import hashlib

import numpy as np

from edgewam.data.video import encode_video
from tests.data.synthetic import CAMERAS, episode

RUNS = 60  # with the encoder's macroblock tree on, 1 of 150 encodings of these clips differed (AVX-512)
CLIPS = [images for seed in range(3) for images in episode(23, seed).images.values()]


def test_equal_frames_give_equal_bytes_in_every_run(tmp_path):
    rng = np.random.default_rng(0)
    path, kept, seen = tmp_path / "clip.mp4", {}, [set() for _ in CLIPS]
    for run in range(RUNS):
        for digests, frames in zip(seen, CLIPS, strict=True):
            encode_video(path, frames, 50)
            digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
            kept[run % 7] = np.full(int(rng.integers(1, 40_000)), run, np.uint8)  # the heap never looks the same
    assert len(CLIPS) == 3 * len(CAMERAS)
    assert [len(digests) for digests in seen] == [1] * len(CLIPS)

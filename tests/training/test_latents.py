"""The latent cache holds what the VAE gives, goes on after a kill, and refuses to serve another VAE or dataset."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewam.core.artifacts import write_json
from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.data.dataset import Dataset
from edgewam.training.frames import compose_episode
from edgewam.training.latents import DONE, LatentCache, LatentPlan, build_cache, open_cache, window_starts
from edgewam.training.vae_measure import to_video
from edgewam.training.weights import load_vae
from tests.training import tiny

Road = tuple[Dataset, Path, Path]
PLAN = LatentPlan(*tiny.CANVAS, clip_frames=9, clip_stride=2, start_stride=6, bfloat16=False)


@pytest.fixture(scope="module")
def cache(road: Road) -> LatentCache:
    vae, manifest = load_vae(road[1])
    return build_cache(road[2] / "exact", road[0], vae, manifest.digest, PLAN)


def test_images_are_what_the_vae_gives_for_the_frame_seen_at_a_step(road: Road, cache: LatentCache) -> None:
    vae, _ = load_vae(road[1])
    steps = np.array([0, 1, 17, 45])
    with torch.inference_mode():
        wanted = vae.encode(to_video(compose_episode(road[0], 1, steps, *tiny.CANVAS)[:, None]))[:, :, 0]
    found = cache.images[cache.image_rows(np.full(4, 1), steps)]
    assert np.abs(found - wanted.numpy()).max() < 2e-3  # half precision of values around one
    assert cache.image_rows(np.array(1), np.array(16)) == cache.image_rows(np.array(1), np.array(17)), "cameras hold two steps"


def test_clips_repeat_the_last_frame_after_the_episode_and_continue_their_image(road: Road, cache: LatentCache) -> None:
    vae, _ = load_vae(road[1])
    for window in (1, int(np.flatnonzero(cache.window_episode == 0)[-1])):
        episode, start = int(cache.window_episode[window]), int(cache.window_step[window])
        steps = np.minimum(start + 2 * np.arange(9), (road[0].lengths[episode] - 1) // 2 * 2)
        with torch.inference_mode():
            wanted = vae.encode(to_video(compose_episode(road[0], episode, steps, *tiny.CANVAS)[None]))[0]
        assert np.abs(cache.clips[window] - wanted[:, 1:].numpy()).max() < 2e-3
        image = cache.images[cache.image_rows(np.array(episode), np.array(start))]
        assert np.abs(image - wanted[:, 0].numpy()).max() < 2e-3


def test_every_episode_has_its_first_frame_and_its_own_phase(road: Road) -> None:
    episode, step = window_starts(road[0], PLAN)
    phases = []
    for number in range(3):
        steps = step[episode == number]
        assert steps[0] == 0
        assert (steps % 2 == 0).all(), "windows start at delivered frames"
        assert set(np.diff(steps[1:])) == {6}
        phases.append(int(steps[1]) % 6)
    assert len(set(phases)) > 1


_KILLED = """
import os, signal, sys
from pathlib import Path
from edgewam.data.dataset import Dataset
from edgewam.training import latents
from edgewam.training.weights import load_vae
from tests.training.test_latents import PLAN
vae, manifest = load_vae(sys.argv[2])
def die(done, total, left):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
latents.build_cache(sys.argv[3], Dataset.open(sys.argv[1]), vae, manifest.digest, PLAN, progress=die)
"""


def test_a_killed_build_goes_on_with_the_next_episode_and_gives_the_same_cache(
    road: Road, cache: LatentCache, tmp_path: Path
) -> None:
    root = Path(__file__).resolve().parents[2]
    arguments = [str(road[0].path), str(road[1]), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", _KILLED, *arguments], cwd=root, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    vae, manifest = load_vae(road[1])
    with pytest.raises(ArtifactError, match="unfinished"):
        open_cache(tmp_path, road[0], vae, manifest.digest, PLAN)
    seen: list[int] = []
    again = build_cache(tmp_path, road[0], vae, manifest.digest, PLAN, progress=lambda done, total, left: seen.append(done))
    assert seen == [3]
    assert np.abs(again.images - cache.images).max() < 2e-3
    assert np.abs(again.clips - cache.clips).max() < 2e-3
    assert (np.asarray(again.clips) != 0).any(axis=(1, 2, 3, 4)).all()


def test_a_cache_of_another_vae_or_plan_is_refused(road: Road, cache: LatentCache) -> None:
    vae, manifest = load_vae(road[1])
    with pytest.raises(ArtifactError, match="another vae than this run"):
        open_cache(road[2] / "exact", road[0], vae, "0" * 64, PLAN)
    with pytest.raises(ArtifactError, match="another plan"):
        build_cache(road[2] / "exact", road[0], vae, manifest.digest, replace(PLAN, clip_stride=4))


def test_a_truncated_array_is_refused(road: Road, cache: LatentCache, tmp_path: Path) -> None:
    for file in (road[2] / "exact").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "clips.f16").write_bytes(b"")
    vae, manifest = load_vae(road[1])
    with pytest.raises(ArtifactError, match="missing or truncated"):
        open_cache(tmp_path, road[0], vae, manifest.digest, PLAN)
    write_json(tmp_path / DONE, {"episodes": 1})  # a new file would hold zeros for the first episode
    with pytest.raises(ArtifactError, match="missing or truncated"):
        build_cache(tmp_path, road[0], vae, manifest.digest, PLAN)


def test_a_full_disk_says_how_much_is_needed(road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    vae, manifest = load_vae(road[1])
    with pytest.raises(EdgewamError, match=r"No space left.*GB"):
        build_cache(tmp_path, road[0], vae, manifest.digest, PLAN)
    assert not (tmp_path / DONE).exists()

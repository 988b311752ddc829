"""Every place of a batch shows the frame that a camera delivered last, once stored, whoever decoded it."""

import itertools
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgewam.core.errors import ArtifactError, ContractError, EdgewamError
from edgewam.core.observation import compose_images
from edgewam.core.records import CAMERAS
from edgewam.data.compose import compose_training
from edgewam.data.dataset import Dataset
from edgewam.data.frame_windows import Canvas, FrameLoader, FrameReader
from edgewam.data.sampler import WindowSampler
from edgewam.data.windows import WindowLayout, make_windows
from tests.data.synthetic import dataset_of, episode

LAYOUT = WindowLayout(chunk=4, horizon=8, stride=2, max_offset=3, num_video_frames=9, num_history=2, history_spacings=(4, 8))
HEIGHT, WIDTH = 96, 64


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Cameras deliver at every second control step."""
    return dataset_of(tmp_path_factory.mktemp("frames") / "dataset", [episode(23, 0), episode(40, 1)])


def windows(dataset, episodes, starts, offsets, spacing=4, layout=LAYOUT):
    arrays = [np.array(values, np.int64) for values in (episodes, starts, offsets, [spacing] * len(starts))]
    return make_windows(dataset, layout, *arrays)


def views(dataset, episode, step):
    return {camera: dataset.frames(episode, camera, [step // 2 * 2])[0] for camera in CAMERAS}


def canvas_at(dataset, episode, step):
    images = {name: torch.from_numpy(view)[None].permute(0, 3, 1, 2) for name, view in views(dataset, episode, step).items()}
    return compose_training(images, HEIGHT, WIDTH)[0]


def read(dataset, chosen, **options):
    return FrameReader(dataset, Canvas(HEIGHT, WIDTH, **options)).read(chosen)


def same(a, b):
    arrays = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("clip", "history", "chunks"))
    numbers = zip(vars(a.windows).values(), vars(b.windows).values(), strict=True)
    return arrays and torch.equal(a.canvases, b.canvases) and all(np.array_equal(x, y) for x, y in numbers)


def test_every_place_shows_what_training_composes_of_the_frame_seen_at_its_step(dataset):
    chosen = windows(dataset, [0, 1, 1], [13, 9, 11], [0, 3, 2])
    batch = read(dataset, chosen)
    assert (chosen.valid_len, batch.history.shape) == (2, (3, 2))
    for rows, steps in (
        (batch.clip, chosen.video_steps),
        (batch.history, chosen.history_steps),
        (batch.chunks, chosen.chunk_steps),
    ):
        assert rows.shape == steps.shape
        for (b, place), step in np.ndenumerate(steps):
            wanted = canvas_at(dataset, int(chosen.episode[b]), int(step))
            assert torch.equal(batch.canvases[rows[b, place]], wanted), (b, place)


def test_a_frame_that_several_places_show_is_stored_once(dataset):
    # chunk 0 and 1 look at steps 8 and 12: the clip's frames 0 and 2; history is at 0 and 4
    batch = read(dataset, windows(dataset, [1], [8], [0]))
    assert len(batch.canvases) == 9 + 2
    np.testing.assert_array_equal(batch.chunks[0], batch.clip[0, [0, 2]])
    # cameras deliver at even steps: a window one step later sees the same frames
    later = read(dataset, windows(dataset, [1, 1], [8, 9], [0, 0]))
    assert len(later.canvases) == 9 + 2
    np.testing.assert_array_equal(later.clip[0], later.clip[1])


def test_past_the_end_the_last_frame_is_repeated_and_not_stored_again(dataset):
    chosen = windows(dataset, [0], [20], [2])
    batch = read(dataset, chosen)
    assert chosen.image_is_pad[0].tolist() == [False] * 2 + [True] * 7
    assert batch.clip[0, 1:].tolist() == [batch.clip[0, 1]] * 8
    assert batch.chunks[0].tolist() == [batch.clip[0, 1]] * 2
    assert torch.equal(batch.canvases[batch.clip[0, 8]], canvas_at(dataset, 0, 22))


def test_without_history_a_batch_has_no_history_canvases(dataset):
    layout = WindowLayout(chunk=8, horizon=8, stride=2, max_offset=0, num_video_frames=9, num_history=0, history_spacings=())
    batch = read(dataset, windows(dataset, [1, 0], [3, 0], [0, 0], layout=layout))
    assert (batch.history.shape, batch.chunks.shape) == ((2, 0), (2, 1))
    np.testing.assert_array_equal(batch.chunks[:, 0], batch.clip[:, 0])
    early = read(dataset, windows(dataset, [1], [2], [0]))  # a layout with history, a start that has none yet
    assert early.history.shape == (1, 0)


def test_bfloat16_is_the_float_canvas_rounded_once_and_uint8_the_run_time_one(dataset):
    chosen = windows(dataset, [1], [8], [1])
    exact = read(dataset, chosen).canvases
    assert torch.equal(read(dataset, chosen, pixels="bfloat16").canvases, exact.bfloat16())
    batch = read(dataset, chosen, pixels="uint8")
    wanted = compose_images(views(dataset, 1, 8), HEIGHT, WIDTH)
    np.testing.assert_array_equal(batch.canvases[batch.clip[0, 0]].permute(1, 2, 0).numpy(), wanted)
    once = read(dataset, chosen, camera_size=None).canvases
    assert (once - exact).abs().max() > 1e-4  # another road, another picture
    for pixels, canvases in (("float32", exact), ("uint8", batch.canvases)):
        assert Canvas(HEIGHT, WIDTH, pixels).num_bytes == canvases[0].nbytes


def test_other_compositions_show_their_cameras(dataset):
    videos = {"front": dataset.index.videos["cam_high"], "wrist": dataset.index.videos["cam_left_wrist"]}
    libero = Dataset(dataset.path, replace(dataset.index, videos=videos))
    chosen = windows(dataset, [1], [8], [0])
    step = int(chosen.chunk_steps[0, 1])
    three = views(dataset, 1, step)
    seen = {"front": three["cam_high"], "wrist": three["cam_left_wrist"]}
    batch = read(libero, chosen, composition="side_by_side")
    images = {name: torch.from_numpy(view)[None].permute(0, 3, 1, 2) for name, view in seen.items()}
    wanted = compose_training(images, HEIGHT, WIDTH, composition="side_by_side")[0]
    assert torch.equal(batch.canvases[batch.chunks[0, 1]], wanted)
    batch = read(libero, chosen, composition="side_by_side", pixels="uint8")
    wanted = compose_images(seen, HEIGHT, WIDTH, "side_by_side")
    np.testing.assert_array_equal(batch.canvases[batch.chunks[0, 1]].permute(1, 2, 0).numpy(), wanted)


def test_missing_cameras_and_lost_videos_are_named(dataset, tmp_path):
    chosen = windows(dataset, [1], [8], [0])
    videos = {name: found for name, found in dataset.index.videos.items() if name != "cam_high"}
    blind = Dataset(dataset.path, replace(dataset.index, videos=videos))
    with pytest.raises(ContractError, match=r"without cameras \['cam_high'\]"):
        read(blind, chosen)
    lost = {name: ([tmp_path / "lost.mp4"] * 2, firsts) for name, (_, firsts) in dataset.index.videos.items()}
    moved = Dataset(dataset.path, replace(dataset.index, videos=lost))
    loader = FrameLoader(FrameReader(moved, Canvas(HEIGHT, WIDTH)))
    with pytest.raises(ArtifactError, match=r"lost\.mp4' is missing"):
        next(loader.stream([chosen]))


def test_a_worker_carries_no_numbers_of_the_dataset(dataset):
    loader = FrameLoader(FrameReader(dataset, Canvas(HEIGHT, WIDTH)))
    assert dataset.index.vectors
    assert not loader._reader.dataset.index.vectors
    assert len(pickle.dumps(loader._reader)) < 10_000


def test_two_processes_give_the_batches_of_one_and_their_error(tmp_path):
    """Few starts of processes for all that they must do: order, a second stream, death, damage."""
    dataset = dataset_of(tmp_path / "dataset", [episode(23, 0), episode(40, 1)])
    sampler = WindowSampler(dataset, LAYOUT, batch_size=2, seed=5)
    chosen = [sampler.global_batch(0, position) for position in range(7)]
    reader = FrameReader(dataset, Canvas(HEIGHT, WIDTH, camera_size=None))
    wanted = [reader.read(one) for one in chosen]
    before = torch.get_rng_state()
    loader = FrameLoader(reader, num_workers=2, prefetch=1)

    def agree(found, expected):
        return all(same(a, b) for a, b in zip(found, expected, strict=True))

    endless = loader.stream(itertools.cycle(chosen))
    assert agree([next(endless) for _ in range(9)], wanted + wanted[:2])
    workers = [worker.pid for worker in loader._loader._iterator._workers]
    # torchrun sends SIGTERM to a rank's whole group; the rank still wants the batches of the step that it finishes
    assert all(os.getpgid(pid) != os.getpgrp() for pid in workers)
    assert agree(loader.stream(chosen[3:6]), wanted[3:6])
    assert [worker.pid for worker in loader._loader._iterator._workers] == workers
    assert torch.equal(torch.get_rng_state(), before)

    for worker in loader._loader._iterator._workers:
        worker.kill()
    with pytest.raises(EdgewamError, match=r"was killed.*fewer workers"):
        list(loader.stream(chosen))
    damaged = dataset.index.videos["cam_left_wrist"][0][1]
    damaged.write_bytes(damaged.read_bytes()[:400])
    with pytest.raises(ArtifactError, match=r"Video '.*cam_left_wrist.*mp4' cannot be opened") as caught:
        list(loader.stream(chosen))  # by new processes
    assert "Traceback" not in str(caught.value)

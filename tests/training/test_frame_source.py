"""Batches made of frames agree with those made of cached latents, in any order and for any number of ranks."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgewam.core.errors import ArtifactError, ContractError
from edgewam.core.records import CAMERAS
from edgewam.data.compose import compose_training
from edgewam.data.dataset import Dataset
from edgewam.data.frame_windows import Canvas
from edgewam.data.sampler import WindowSampler
from edgewam.data.stats import measure_stats
from edgewam.data.windows import WindowBatch, WindowLayout
from edgewam.models.flow_loss import LossBatch
from edgewam.models.text import SmallTextEncoder
from edgewam.models.wan_vae import WanVae
from edgewam.training.frame_source import FrameChoice, FrameSource, canvas_for, encode_frames
from edgewam.training.latents import LatentPlan, build_cache
from edgewam.training.loop import Interrupted, Loss, Progress, train
from edgewam.training.policy import PolicyTask
from edgewam.training.ranks import Share
from edgewam.training.weights import load_vae
from edgewam.training.windows import Choice, WindowSource
from tests.data.synthetic import TASKS
from tests.training import tiny

Road = tuple[Dataset, Path, Path]
ONCE = Canvas(*tiny.CANVAS, camera_size=None)  # without the released camera size, which is ten times that of these cameras
LOOP = replace(tiny.LOOP, ema_decay=None)
TEXT = SmallTextEncoder(16, 8)
HALF = 2e-3  # half precision of values around one, in which the cache stores them (as in test_latents)
ROUNDING = 2e-5  # float32 sums of other shapes: images together or alone, clips with or without their first frame
BF16 = 0.1  # 8-bit mantissa through the encoder, of latents around one


def source(
    road: Road, batch_size: int = 3, layout: WindowLayout = tiny.LAYOUT, start_stride: int = 1, **changes: Any
) -> FrameSource:
    dataset, vae, _ = road
    sampler = WindowSampler(dataset, layout, batch_size, seed=2, start_stride=start_stride)
    options = {"sampler": sampler, "canvas": ONCE, "vae": load_vae(vae)[0], "stats": measure_stats(dataset), "text": TEXT}
    return FrameSource(**{**options, **changes})


def first(one: FrameSource, wanted: Callable[[WindowBatch], bool]) -> FrameChoice:
    """The first batch of the endless order that fits."""
    index = next(i for i in range(10_000) if wanted(one.sampler.global_batch(*one.sampler.place(i))))
    return one.draw(one.sampler.batch_size, np.random.default_rng(0), index)


def largest_difference(a: LossBatch, b: LossBatch) -> dict[str, float]:
    return {f.name: _distance(getattr(a, f.name), getattr(b, f.name)) for f in fields(LossBatch)}


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0


@pytest.mark.parametrize("padded", [False, True])
def test_batches_of_frames_are_those_of_cached_latents(road: Road, padded: bool) -> None:
    dataset, layout = road[0], replace(tiny.LAYOUT, history_spacings=(4,))
    vae, manifest = load_vae(road[1])
    plan = LatentPlan(*tiny.CANVAS, clip_frames=9, clip_stride=2, start_stride=6, bfloat16=False)
    cache = build_cache(road[2] / "exact", dataset, vae, manifest.digest, plan)
    cached = WindowSource(dataset, cache, measure_stats(dataset), TEXT, layout, range(dataset.num_episodes))
    row_of = {place: row for row, place in enumerate(zip(cache.window_episode, cache.window_step, strict=True))}

    def fits(windows: WindowBatch) -> bool:
        known = all(place in row_of for place in zip(windows.episode, windows.start, strict=True))
        return known and windows.valid_len == 2 and windows.image_is_pad.any() == padded

    one = source(road, 2, layout, start_stride=2, canvas=Canvas(*tiny.CANVAS, pixels="uint8"))  # the cache's pictures
    choice = first(one, fits)
    windows = one.sampler.global_batch(*one.sampler.place(choice.index))
    rows = [row_of[place] for place in zip(windows.episode, windows.start, strict=True)]
    wanted = cached.batch(Choice(np.array(rows), windows.offset, 4))
    differences = largest_difference(one.batch(choice), wanted)
    latents = {name: differences.pop(name) for name in ("video_latents", "history_latents", "chunk_latents")}
    assert max(latents.values()) < HALF, latents
    assert set(differences.values()) == {0.0}, differences
    assert all(getattr(wanted, name).std() > 0.1 for name in latents)  # there is something to compare


def test_pictures_take_the_road_of_released_training(road: Road) -> None:
    one = source(road, 2, canvas=canvas_for(load_vae(road[1])[0], *tiny.CANVAS))
    choice = first(one, lambda windows: windows.valid_len == 2)
    windows = one.sampler.global_batch(0, choice.index)
    batch = one.batch(choice)
    with torch.inference_mode():
        for b, episode in enumerate(windows.episode):
            clip = _canvases(road[0], episode, windows.video_steps[b])
            assert _distance(batch.video_latents[b], one.vae.encode(clip.transpose(0, 1)[None])[0]) < ROUNDING
            alone = _canvases(road[0], episode, np.append(windows.history_steps[b], windows.chunk_steps[b]))
            found = torch.cat([batch.history_latents[b], batch.chunk_latents[b]])
            assert _distance(found, one.vae.encode_image(alone)) < ROUNDING
    assert not batch.video_latents.requires_grad and not batch.video_latents.is_inference()


def _canvases(dataset: Dataset, episode: int, steps: np.ndarray) -> torch.Tensor:
    steps = steps // 2 * 2  # cameras deliver at every second step
    views = {name: torch.from_numpy(dataset.frames(episode, name, steps)).permute(0, 3, 1, 2) for name in CAMERAS}
    return compose_training(views, *tiny.CANVAS)


def test_a_batch_depends_on_its_number_alone(road: Road) -> None:
    one, other = source(road, 1, start_stride=3), source(road, 1, start_stride=3)
    numbers = [0, 1, 9, 1, 60]  # in turn, forwards, back, into another epoch
    assert one.sampler.place(60)[0] > 0
    generator = np.random.default_rng(0)
    found = {n: one.batch(one.draw(1, generator, n)) for n in numbers}
    for n in reversed(numbers):
        assert set(largest_difference(found[n], other.batch(other.draw(1, generator, n))).values()) == {0.0}, n


def test_ranks_get_their_rows_of_the_global_batch(road: Road) -> None:
    one = source(road)
    whole = one.draw(3, np.random.default_rng(0), 5)
    blocks = [Share(rank, 2).rows(len(whole)) for rank in range(2)]
    parts = [one.batch(whole.rows(block.start, block.stop)) for block in blocks]
    together = LossBatch(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(LossBatch)))
    assert max(largest_difference(together, one.batch(whole)).values()) < ROUNDING


def test_reading_ahead_follows_the_order_of_batches(road: Road) -> None:
    one = source(road)
    streams = []
    begin = one._loader.stream
    one._loader.stream = lambda windows: streams.append(1) or begin(windows)  # type: ignore[method-assign]
    generator = np.random.default_rng(0)
    for n in (1, 2, 3):
        one.batch(one.draw(3, generator, n).rows(0, 1))
    assert len(streams) == 1
    one.batch(one.draw(3, generator, 6).rows(0, 1))
    assert len(streams) == 2
    assert [each.index for each in itertools.islice(one.draw(3, generator, 6).following(), 3)] == [6, 7, 8]
    assert len(list(one.draw(3, generator).following())) == 1  # after a random one nobody knows


def test_a_family_without_history_and_chunk_images_gets_neither(road: Road) -> None:
    layout = WindowLayout(chunk=8, horizon=8, stride=2, max_offset=0, num_video_frames=9, num_history=0, history_spacings=())
    one = source(road, layout=layout, chunk_images=False)
    batch = one.batch(one.draw(3, np.random.default_rng(0), 0))
    cell = batch.video_latents.shape[-2:]
    assert batch.video_latents.shape[:3] == (3, 48, 3)
    assert batch.history_latents.shape == (3, 0, 48, *cell)
    assert batch.chunk_latents.shape == (3, 0, 48, *cell)
    assert (batch.proprio.shape, batch.history_frame_ids.shape) == ((3, 1, 14), (3, 0))


def test_autocast_around_it_does_not_change_latents(road: Road) -> None:
    one = source(road)
    choice = one.draw(2, np.random.default_rng(0), 0)
    plain = one.batch(choice)
    with torch.autocast("cpu", torch.bfloat16):
        inside = one.batch(choice)
    assert set(largest_difference(plain, inside).values()) == {0.0}


def test_a_bfloat16_vae_gets_rounded_pixels_and_its_latents_are_exact_in_float32(road: Road) -> None:
    vae = load_vae(road[1])[0].to(torch.bfloat16)
    assert canvas_for(vae, *tiny.CANVAS).pixels == "bfloat16"
    one = source(road, vae=vae, canvas=replace(ONCE, pixels="bfloat16"))
    choice = one.draw(2, np.random.default_rng(0), 0)
    found, exact = one.batch(choice), source(road).batch(choice)
    for latents in (found.video_latents, found.history_latents, found.chunk_latents):
        assert latents.dtype == torch.float32 and torch.equal(latents, latents.bfloat16().float())
    assert 0 < (found.video_latents - exact.video_latents).abs().max() < BF16
    with pytest.raises(ContractError, match=r"not in torch\.float16"):
        canvas_for(vae.half(), *tiny.CANVAS)


def test_instructions_are_kept_without_loss(road: Road) -> None:
    class Fine(SmallTextEncoder):
        def encode(self, instruction: str) -> np.ndarray:
            return super().encode(instruction) * np.float32(1 / 3)  # not a bfloat16 number

    for text in (TEXT, Fine(16, 8)):
        one = source(road, text=text)
        choice = first(one, lambda windows: len(set(windows.episode % 2)) == 2)  # both instructions
        windows = one.sampler.global_batch(0, choice.index)
        context = one.batch(choice).context
        for b, episode in enumerate(windows.episode):
            np.testing.assert_array_equal(context[b].numpy(), text.encode(road[0].task(int(episode))))


def test_an_instruction_without_an_embedding_stops_before_the_first_batch(road: Road) -> None:
    class Partial(SmallTextEncoder):
        def encode(self, instruction: str) -> np.ndarray:
            if instruction == TASKS[1]:
                raise ArtifactError(f"No embedding of '{instruction}'.")
            return super().encode(instruction)

    with pytest.raises(ArtifactError, match=TASKS[1]):
        source(road, text=Partial(16, 8))
    others = WindowSampler(road[0], tiny.LAYOUT, 3, seed=2, episodes=[0, 2])
    assert others.tasks == (TASKS[0],)
    source(road, text=Partial(16, 8), sampler=others)  # nobody will ask for the other instruction


def test_choices_are_described_by_place_and_first_windows(road: Road) -> None:
    one = source(road, 6)
    windows = one.sampler.global_batch(0, 3)
    line = one.describe(one.draw(6, np.random.default_rng(0), 3))
    assert line.startswith(
        f"epoch 0 position 3: episode {windows.episode[0]} step {windows.start[0]} offset {windows.offset[0]}, "
    )
    assert line.endswith(", ...") and line.count("episode") == 4
    assert one.describe(FrameChoice(3, 1, 2)).count("episode") == 1


def test_draws_without_a_number_are_random_and_never_too_large(road: Road) -> None:
    one = source(road)
    drawn = {one.draw(2, np.random.default_rng(seed)).index for seed in range(20)}
    assert len(drawn) > 5 and max(drawn) < one.sampler.num_batches(0)
    with pytest.raises(ContractError, match="batches of 3 windows; 4 were asked for"):
        one.draw(4, np.random.default_rng(0), 0)


def test_every_canvas_is_encoded_once(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = load_vae(road[1])[0]
    seen: list[int] = []
    encode_image = WanVae.encode_image
    monkeypatch.setattr(WanVae, "encode_image", lambda self, image: seen.append(len(image)) or encode_image(self, image))
    canvases = torch.rand(12, 3, *tiny.CANVAS) * 2 - 1
    images = (np.array([[0, 1], [1, 2]]), np.array([[2, 3, 4], [5, 6, 11]]))
    video, (two, three) = encode_frames(vae, canvases, np.arange(5)[None], images)
    assert sum(seen) == 8 and max(seen) <= 8
    assert (video.shape[2], two.shape[:2], three.shape[:2]) == (2, (2, 2), (2, 3))
    assert torch.equal(two[0, 1], two[1, 0]) and torch.equal(two[1, 1], three[0, 0])
    assert _distance(three[1, 2], encode_image(vae, canvases[11:])[0]) < ROUNDING


def policy_task(road: Road, one: FrameSource) -> PolicyTask:
    return PolicyTask(tiny.policy_training(road[0], road[1], road[2], batch_size=3, loop=LOOP, frames=True), one, {})


def test_a_training_on_frames_goes_on_exactly_where_it_was_stopped(road: Road, tmp_path: Path) -> None:
    def stop(now: Progress) -> None:
        if now.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    whole = train(policy_task(road, source(road)), LOOP, tmp_path / "whole").weights
    with pytest.raises(Interrupted):
        train(policy_task(road, source(road)), LOOP, tmp_path / "cut", progress=stop)
    again = train(policy_task(road, source(road)), LOOP, tmp_path / "cut").weights
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_the_losses_of_all_ranks_make_that_of_one(road: Road) -> None:
    task = policy_task(road, source(road))
    batch = task.batch(4, np.random.default_rng(0))

    def loss(share: Share) -> Loss:
        return task.loss(batch, torch.Generator().manual_seed(1), share)

    parts = [loss(Share(rank, 2)) for rank in range(2)]
    assert [part.weight for part in parts] == [1, 2]
    together = sum(part.value.item() * part.weight for part in parts) / 3
    assert together == pytest.approx(loss(Share()).value.item(), rel=ROUNDING)

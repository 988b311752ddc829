"""The VAE learns, its artifact loads as it was measured, and its latents are normalised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgewam.core.artifacts import read_manifest
from edgewam.core.errors import ArtifactError, ContractError
from edgewam.data.dataset import Dataset
from edgewam.training.frames import FrameSet
from edgewam.training.log import read_log
from edgewam.training.vae import train_vae
from edgewam.training.vae_measure import latent_constants, to_video
from edgewam.training.weights import load_vae, rounded
from tests.training import tiny

Road = tuple[Dataset, Path, Path]


@pytest.fixture(scope="module")
def trained(road: Road, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    out = tmp_path_factory.mktemp("vae") / "vae"
    loop = replace(tiny.LOOP, steps=40, warmup_steps=4)
    return out, train_vae(tiny.vae_training(road[0], loop=loop, weights_dtype="float16", lr=3e-3), out)


def test_pixels_and_probe_errors_fall_on_images_and_on_clips(trained: tuple[Path, dict[str, object]]) -> None:
    log = read_log(trained[0])
    images = [line["pixel_mse_image"] for line in log if "pixel_mse_image" in line]
    clips = [line["pixel_mse_clip"] for line in log if "pixel_mse_clip" in line]
    assert len(images) == len(clips) == 20, "every second batch is one of clips"
    assert np.mean(images[-3:]) < 0.5 * images[0]
    assert np.mean(clips[-3:]) < 0.5 * clips[0]
    assert np.mean([line["probe_mse"] for line in log[-5:]]) < np.mean([line["probe_mse"] for line in log[:3]])


def test_what_was_measured_is_what_loads(road: Road, trained: tuple[Path, dict[str, object]]) -> None:
    out, measured = trained
    vae, manifest = load_vae(out)
    assert manifest.measured["pixel_mse_image"] == measured["pixel_mse_image"]
    assert manifest.parents == {"dataset": road[0].digest}
    assert manifest.config["privileged_training_state"] is True
    held = FrameSet.load(road[0], [2], tiny.CANVAS, 2, 512, 0, False)
    with torch.inference_mode():
        video = to_video(held.images[:, None])
        error = (vae.decode(vae.encode(video)) - video).square().mean()
    assert error.item() == pytest.approx(measured["pixel_mse_image"], rel=1e-4)
    with Image.open(out / "reconstruction.png") as picture:
        assert picture.size[1] == 2 * tiny.CANVAS[0]


def test_latents_of_images_and_clips_are_normalised_together(road: Road, trained: tuple[Path, dict[str, object]]) -> None:
    vae, _ = load_vae(trained[0])
    data = FrameSet.load(road[0], [0, 1], tiny.CANVAS, 2, 512, 0, False)
    mean, std = latent_constants(vae, data, seed=0)
    assert torch.allclose(mean, vae.latent_mean.flatten(), atol=1e-3)
    assert torch.allclose(std, vae.latent_std.flatten(), rtol=1e-2, atol=1e-4)
    with torch.inference_mode():
        latent = vae.encode(to_video(data.images[:, None]))
    assert 0.5 < latent.std().item() < 2.0


def test_a_vae_without_privileged_state_needs_no_probe(road: Road, tmp_path: Path) -> None:
    measured = train_vae(tiny.vae_training(road[0], probe_weight=0.0), tmp_path / "vae")
    assert "probe_error_cm" not in measured
    assert read_manifest(tmp_path / "vae").config["privileged_training_state"] is False


def test_training_goes_on_from_another_vae(road: Road, trained: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    train_vae(
        tiny.vae_training(road[0], init_from=trained[0], loop=replace(tiny.LOOP, steps=1, warmup_steps=1)), tmp_path / "vae"
    )
    first = read_log(tmp_path / "vae")[0]["pixel_mse_image"]
    assert first < 0.5 * read_log(trained[0])[0]["pixel_mse_image"]


def test_clips_that_no_episode_is_long_enough_for_are_refused(road: Road, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No episode has 65 frames 2 steps apart"):
        train_vae(tiny.vae_training(road[0], batch_clips=((65, 1),)), tmp_path / "vae")


def test_a_probe_of_state_that_was_not_recorded_is_refused(road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {name: rows for name, rows in road[0].index.vectors.items() if "environment" not in name}
    monkeypatch.setattr(Dataset, "open", lambda path: replace(road[0], index=replace(road[0].index, vectors=vectors)))
    with pytest.raises(ContractError, match="environment_state"):
        train_vae(tiny.vae_training(road[0]), tmp_path / "vae")


def test_clip_rows_never_cross_an_episode(road: Road) -> None:
    data = FrameSet.load(road[0], [0, 1, 2], tiny.CANVAS, 2, 512, 0, True)
    starts = data.clip_starts(9)
    rows = starts[:, None] + np.arange(9)
    assert len(starts)
    assert (data.episode[rows] == data.episode[rows[:, :1]]).all()
    assert (np.diff(data.step[rows], axis=1) == 2).all()
    assert data.environment is not None
    assert len(data.environment) == len(data.images)


@pytest.mark.parametrize("damage", ["truncate", "kind", "missing"])
def test_a_damaged_vae_is_refused_with_what_to_do(road: Road, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "vae"
    if damage == "truncate":
        tiny.vae_at(path)
        weights = path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "kind":
        path = road[0].path
    with pytest.raises(ArtifactError, match=r"again|needed here|Run the step"):
        load_vae(path)


def test_rounding_is_what_storing_does() -> None:
    state = {"w": torch.tensor([1.0001, 3.0]), "n": torch.tensor(3)}
    assert torch.equal(rounded(state, "float16")["w"], state["w"].half().float())
    assert rounded(state, "float16")["n"].dtype == torch.int64
    assert torch.equal(rounded(state, "float32")["w"], state["w"])

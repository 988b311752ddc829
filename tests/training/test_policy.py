"""Policy training learns, resumes exactly, keeps history batches homogeneous, and its artifact knows its VAE."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.data.dataset import Dataset
from edgewam.data.stats import measure_stats
from edgewam.models import aha_wam
from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.text import SmallTextEncoder
from edgewam.training.latents import build_cache
from edgewam.training.log import read_log
from edgewam.training.loop import Interrupted, Progress
from edgewam.training.policy import PolicyTask, measure_policy, train_policy
from edgewam.training.policy_artifact import load_policy
from edgewam.training.vae import train_vae
from edgewam.training.weights import load_vae
from edgewam.training.windows import Choice, WindowSource, latent_plan
from tests.training import tiny

Road = tuple[Dataset, Path, Path]


@pytest.fixture(scope="module")
def source(road: Road) -> WindowSource:
    dataset, vae_path, root = road
    vae, manifest = load_vae(vae_path)
    cache = build_cache(root / "latents", dataset, vae, manifest.digest, latent_plan(tiny.LAYOUT, tiny.MODEL, 6, 0))
    text = SmallTextEncoder(tiny.MODEL.text_dim, tiny.MODEL.text_len)
    return WindowSource(dataset, cache, measure_stats(dataset), text, tiny.LAYOUT, range(2))


@pytest.fixture(scope="module")
def trained(road: Road, source: WindowSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("policies") / "policy"
    loop = replace(tiny.LOOP, steps=60, warmup_steps=5)
    train_policy(tiny.policy_training(road[0], road[1], road[2] / "latents", loop=loop, weights_dtype="float16"), out)
    return out


def test_both_losses_and_the_sampling_error_fall(road: Road, trained: Path, source: WindowSource) -> None:
    untrained = PolicyTask(tiny.policy_training(road[0], road[1], road[2]), source, {}).module
    assert isinstance(untrained, AhaWam)
    before, after = (measure_policy("aha_wam", model, source, seed=3) for model in (untrained, load_policy(trained).model))
    assert after["video_loss"] < 0.8 * before["video_loss"]
    assert after["action_loss"] < 0.8 * before["action_loss"]
    assert after["action_rms"] < 0.97 * before["action_rms"]


def test_training_does_not_look_at_the_schedule_of_the_sampler(road: Road, source: WindowSource) -> None:
    def loss(**changes: float) -> float:
        model = replace(tiny.MODEL, **changes)  # type: ignore[arg-type]
        task = PolicyTask(tiny.policy_training(road[0], road[1], road[2], model=model), source, {})
        batch = task.batch(0, np.random.default_rng(0))
        return float(task.loss(batch, torch.Generator().manual_seed(0))[0].detach())

    assert loss(shift=1.0) == loss()
    assert loss(train_shift=1.0) != loss()


def test_a_stopped_run_resumes_exactly(road: Road, trained: Path, source: WindowSource, tmp_path: Path) -> None:
    def stop(now: Progress) -> None:
        if now.step == 31:
            os.kill(os.getpid(), signal.SIGINT)

    loop = replace(tiny.LOOP, steps=60, warmup_steps=5)
    config = tiny.policy_training(road[0], road[1], road[2] / "latents", loop=loop, weights_dtype="float16")
    with pytest.raises(Interrupted):
        train_policy(config, tmp_path / "policy", stop)
    assert not (tmp_path / "policy").exists(), "an unfinished training leaves no artifact"
    train_policy(config, tmp_path / "policy")
    assert (tmp_path / "policy/model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_a_batch_is_a_function_of_its_number(source: WindowSource) -> None:
    first, again = (source.draw(6, np.random.default_rng([0, 5])) for _ in range(2))
    other = source.draw(6, np.random.default_rng([0, 6]))
    assert np.array_equal(first.windows, again.windows)
    assert np.array_equal(first.offsets, again.offsets)
    assert not (np.array_equal(first.windows, other.windows) and np.array_equal(first.offsets, other.offsets))


def test_batches_have_one_history_length_and_every_length_occurs(source: WindowSource) -> None:
    lengths = set()
    for number in range(40):
        batch = source.batch(source.draw(4, np.random.default_rng(number)))
        assert batch.history_latents.shape[1] == batch.history_valid_len[0] == batch.history_valid_len.max()
        lengths.add(int(batch.history_valid_len[0]))
    assert lengths == {0, 1, 2}


def test_offsets_move_actions_states_and_chunk_images_but_not_the_planner(road: Road, source: WindowSource) -> None:
    window = int(np.flatnonzero((source.cache.window_episode == 1) & (source.cache.window_step >= 16))[0])
    start = int(source.cache.window_step[window])
    none, three = (source.batch(Choice(np.array([window]), np.array([offset]), 8)) for offset in (0, 3))
    for name in ("video_latents", "history_latents", "video_frame_ids", "history_frame_ids"):
        assert torch.equal(getattr(none, name), getattr(three, name)), name
    actions = source.stats.action.forward(road[0].actions(1)[start + 3 : start + 11])
    assert torch.equal(three.actions[0], torch.from_numpy(actions))
    states = source.stats.state.forward(road[0].states(1)[[start + 3, start + 7]])
    assert torch.equal(three.proprio[0], torch.from_numpy(states))
    rows = source.cache.image_rows(np.array(1), np.array([start + 3, start + 7]))
    assert np.array_equal(three.chunk_latents[0].numpy(), source.cache.images[rows].astype(np.float32))
    assert none.history_frame_ids[0].tolist() == [(start - 16) // 2, (start - 8) // 2]


def test_muon_trains_the_matrices_of_blocks_and_router_only(road: Road, source: WindowSource) -> None:
    task = PolicyTask(tiny.policy_training(road[0], road[1], road[2]), source, {})
    adamw, muon = task.parameter_groups()
    assert len(adamw.parameters) + len(muon.parameters) == len(list(task.module.parameters()))
    assert all(p.ndim == 2 for p in muon.parameters.values())
    assert "mot.chunk_kv_cache_editor.layer_delta_proj.1.3.weight" in muon.parameters
    assert "mot.mixtures.video.blocks.0.ffn.0.weight" in muon.parameters
    assert not any("embedding" in name or "head.head" in name or "encoder" in name for name in muon.parameters)


def test_the_artifact_loads_with_its_vae_and_refuses_another(road: Road, trained: Path, tmp_path: Path) -> None:
    moved = tmp_path / "somewhere/else/policy"
    shutil.copytree(trained, moved)
    with pytest.raises(ArtifactError, match=r"VAE of .* is not at"):
        load_policy(moved)
    loaded = load_policy(moved, road[1])
    assert loaded.facts.layout == tiny.LAYOUT
    assert loaded.model.config == tiny.MODEL
    assert not any(p.requires_grad for p in loaded.model.parameters())
    with pytest.raises(ArtifactError, match="not the VAE"):
        load_policy(moved, tiny.vae_at(tmp_path / "other", seed=1))
    with pytest.raises(ArtifactError, match="is a vae, but a policy"):
        load_policy(road[1])


def test_training_goes_on_from_another_policy_with_its_statistics(road: Road, trained: Path, tmp_path: Path) -> None:
    config = tiny.policy_training(road[0], road[1], road[2] / "latents", init_from=trained)
    train_policy(config, tmp_path / "policy")
    before, after = load_policy(trained, road[1]), load_policy(tmp_path / "policy")
    assert np.array_equal(before.stats.action.std, after.stats.action.std)
    assert after.manifest.parents["init_from"] == before.manifest.digest
    assert read_log(tmp_path / "policy")[0]["action"] < read_log(trained)[0]["action"]


def test_weights_that_have_only_seen_rounded_timesteps_go_on_with_them(
    road: Road, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Released weights are trained and sampled at timesteps of bfloat16: 832, never 833.3."""
    start = load_policy(trained, road[1])
    released = replace(start, facts=replace(start.facts, sampler_tables="bf16"))
    monkeypatch.setattr("edgewam.training.policy.load_policy", lambda *_: released)
    config = tiny.policy_training(road[0], road[1], road[2] / "latents", init_from=trained, loop=replace(tiny.LOOP, steps=1))
    seen: list[torch.Tensor] = []
    loss = aha_wam.training_loss

    def watched(model: Any, batch: Any, noise: Any) -> Any:
        seen.extend((noise.video_timestep, noise.action_timestep))
        return loss(model, batch, noise)

    monkeypatch.setattr("edgewam.models.aha_wam.training_loss", watched)
    train_policy(config, tmp_path / "policy")
    assert len(seen) > 2 and all(torch.equal(times, times.bfloat16().float()) for times in seen)
    assert load_policy(tmp_path / "policy").facts.sampler_tables == "bf16"
    with pytest.raises(EdgewamError, match="attention heads 12 wide"):
        train_policy(replace(config, model=replace(config.model, head_dim=24, num_heads=1)), tmp_path / "x")


def test_training_may_go_on_with_the_statistics_of_other_tasks(
    road: Road, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_policy(trained, road[1]).stats
    action = replace(before.action, std=7.0 * before.action.std)
    monkeypatch.setattr("edgewam.training.policy.measure_stats", lambda *_, **__: replace(before, action=action))
    config = tiny.policy_training(road[0], road[1], road[2] / "latents", init_from=trained)
    for new_stats, expected in ((False, before.action.std), (True, action.std)):
        train_policy(replace(config, new_stats=new_stats), tmp_path / str(new_stats))
        assert np.array_equal(load_policy(tmp_path / str(new_stats)).stats.action.std, expected)


def test_training_goes_on_with_a_vae_that_reproduces_the_latents_and_with_no_other(
    road: Road, trained: Path, tmp_path: Path
) -> None:
    fewer_blocks = replace(tiny.tiny_vae_config(), num_res_blocks=1)
    train_vae(tiny.vae_training(road[0], vae=fewer_blocks, reproduce=road[1]), tmp_path / "smaller")
    config = tiny.policy_training(road[0], tmp_path / "smaller", tmp_path / "latents", init_from=trained)
    train_policy(config, tmp_path / "policy")
    after = load_policy(tmp_path / "policy")
    assert after.vae.config.num_res_blocks == 1
    assert np.array_equal(after.stats.action.std, load_policy(trained, road[1]).stats.action.std)
    other = replace(config, vae=tiny.vae_at(tmp_path / "other", seed=1), latents=tmp_path / "others")
    with pytest.raises(ArtifactError, match="not the VAE"):
        train_policy(other, tmp_path / "refused")
    assert not (tmp_path / "refused").exists() and not (tmp_path / "others").exists(), "refused before hours of encoding"


def test_the_first_loss_of_a_run_depends_on_the_seed_alone(road: Road, source: WindowSource, tmp_path: Path) -> None:
    losses = []
    for seed in (0, 0, 1):
        task = PolicyTask(tiny.policy_training(road[0], road[1], road[2], loop=replace(tiny.LOOP, seed=seed)), source, {})
        batch = task.batch(0, np.random.default_rng([seed, 0]))
        losses.append(task.loss(batch, torch.Generator().manual_seed(seed))[0].item())
    assert losses[0] == losses[1] != losses[2]

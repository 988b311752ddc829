"""A LeRobot v2.1 dataset in RoboTwin's layout trains: read, windowed, composed, encoded, two optimiser steps, an artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewam.data.dataset import Dataset
from edgewam.data.stats import measure_stats
from edgewam.data.windows import WindowLayout
from edgewam.models.fast_wam import FastWamConfig
from edgewam.training.log import read_log
from edgewam.training.policy import train_policy
from edgewam.training.policy_artifact import load_policy
from tests.data.robotwin import TASKS, robotwin
from tests.training import tiny

FAST_LAYOUT = WindowLayout(
    chunk=16, horizon=16, stride=2, max_offset=0, num_video_frames=9, num_history=0, history_spacings=()
)  # fmt: skip
FAST_MODEL = FastWamConfig(
    num_layers=2, num_heads=2, head_dim=12, video_dim=24, video_ffn_dim=32, action_hidden_dim=16, action_ffn_dim=32, text_dim=16,
    text_len=8, freq_dim=8, image_height=96, image_width=64, horizon=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    found: Dataset = robotwin(tmp_path_factory.mktemp("robotwin") / "set")
    return found


@pytest.mark.parametrize(
    "family",
    [
        {"family": "aha_wam", "model": tiny.MODEL, "layout": tiny.LAYOUT},
        {"family": "fast_wam", "model": FAST_MODEL, "layout": FAST_LAYOUT},
    ],
    ids=lambda family: family["family"],
)
def test_a_dataset_in_robotwins_layout_trains(family: dict[str, object], dataset: Dataset, tmp_path: Path) -> None:
    vae = tiny.vae_at(tmp_path / "vae")
    loop = replace(tiny.LOOP, steps=2, warmup_steps=1)
    out = tmp_path / "policy"
    measured = train_policy(tiny.policy_training(dataset, vae, tmp_path / "latents", loop=loop, **family), out)
    assert measured["steps"] == 2 and np.isfinite(measured["action_rms"])
    losses = [entry["loss"] for entry in read_log(tmp_path / "policy.training") if "loss" in entry]
    assert len(losses) == 2 and np.isfinite(losses).all()
    policy = load_policy(out)
    assert (policy.family, policy.facts.tasks) == (family["family"], TASKS)
    assert policy.manifest.parents["dataset"] == dataset.digest
    expected = measure_stats(dataset, range(2))
    np.testing.assert_array_equal(policy.stats.action.mean, expected.action.mean)
    assert all(torch.isfinite(value).all() for value in policy.model.state_dict().values())

"""A LeRobot v2.1 dataset in RoboTwin's layout trains: read, windowed, composed, encoded, two optimiser steps, an artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewam.core.errors import ContractError
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


@pytest.mark.parametrize("frames", [False, True], ids=["cached latents", "frames"])
def test_two_cameras_and_another_arm_train_by_min_max(frames: bool, tmp_path: Path) -> None:
    """LIBERO's form: cameras side by side, states of 8 numbers, actions of 7."""
    shape = {"cameras": ("image", "wrist_image"), "state_dim": 8, "action_dim": 7}
    dataset = robotwin(tmp_path / "set", (24, 24), fps=10, **shape)
    model = replace(FAST_MODEL, image_height=32, image_width=64, proprio_dim=8, action_dim=7)
    config = tiny.policy_training(
        dataset, tiny.vae_at(tmp_path / "vae"), tmp_path / "latents", loop=replace(tiny.LOOP, steps=2, warmup_steps=1),
        family="fast_wam", model=model, layout=FAST_LAYOUT, composition="side_by_side", normalisation="min/max", frames=frames,
        num_workers=0,
    )  # fmt: skip
    assert np.isfinite(train_policy(config, tmp_path / "policy")["action_rms"])
    policy = load_policy(tmp_path / "policy")
    assert (policy.facts.composition, policy.facts.fps) == ("side_by_side", 10)
    low, high = policy.stats.action.limits
    np.testing.assert_array_equal((low, high), (dataset.actions(0).min(0), dataset.actions(0).max(0)))
    if not frames:
        faster = robotwin(tmp_path / "faster", (24, 24), fps=20, **shape)
        with pytest.raises(ContractError, match=r"faster' has 20 control steps a second, '.*policy' 10\. Give data of the same"):
            train_policy(replace(config, dataset=faster.path, init_from=tmp_path / "policy"), tmp_path / "next")


def test_data_of_another_arm_is_refused_before_anything_is_encoded(dataset: Dataset, tmp_path: Path) -> None:
    config = tiny.policy_training(
        dataset, tiny.vae_at(tmp_path / "vae"), tmp_path / "latents", model=replace(tiny.MODEL, proprio_dim=8, action_dim=7)
    )
    with pytest.raises(ContractError, match=r"set' has 14 numbers in a state, the model 8\."):
        train_policy(config, tmp_path / "policy")
    assert not (tmp_path / "latents").exists() and not (tmp_path / "policy").exists()

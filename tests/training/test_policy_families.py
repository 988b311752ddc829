"""A policy of another family trains and keeps its texts, from cached latents or from pictures that are decoded meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewam.core.errors import EdgewamError
from edgewam.data.dataset import Dataset
from edgewam.data.windows import WindowLayout
from edgewam.models.fast_wam import FastWam, FastWamConfig
from edgewam.models.text_store import PROMPTS, write_prompts
from edgewam.training.log import read_log
from edgewam.training.policy import PolicyTraining, train_policy
from edgewam.training.policy_artifact import load_policy
from tests.training import tiny

Road = tuple[Dataset, Path, Path]
MODEL = FastWamConfig(
    num_layers=2, num_heads=2, head_dim=12, video_dim=24, video_ffn_dim=32, action_hidden_dim=16, action_ffn_dim=32, text_dim=16,
    text_len=8, freq_dim=8, image_height=96, image_width=64, horizon=8,
)  # fmt: skip
LAYOUT = WindowLayout(chunk=8, horizon=8, stride=2, max_offset=0, num_video_frames=9, num_history=0, history_spacings=())


@pytest.fixture(scope="module")
def words(road: Road, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the dataset's instructions that no encoder of edgewam makes."""
    out = tmp_path_factory.mktemp("words")
    shape = (MODEL.text_len, MODEL.text_dim)
    rows = {task: np.random.default_rng(n).normal(size=shape) for n, task in enumerate(road[0].tasks)}
    write_prompts(out / PROMPTS, rows)
    return out


LOOP = replace(tiny.LOOP, steps=40, warmup_steps=2)


def fast(road: Road, words: Path, **changes: object) -> PolicyTraining:
    plain = tiny.policy_training(road[0], road[1], road[2] / "fast_latents", family="fast_wam", model=MODEL, layout=LAYOUT)
    return replace(plain, **{"text": str(words), "muon_lr": None, "action_draws": 1, "loop": LOOP, **changes})  # type: ignore[arg-type]


def test_fast_wam_learns_and_its_policy_holds_its_instructions(road: Road, words: Path, tmp_path: Path) -> None:
    train_policy(fast(road, words), tmp_path / "policy")
    loaded, log = load_policy(tmp_path / "policy"), read_log(tmp_path / "policy")
    assert isinstance(loaded.model, FastWam) and loaded.model.config == MODEL and loaded.facts.text_encoder == "umt5"
    assert np.mean([line["action"] for line in log[-8:]]) < 0.9 * np.mean([line["action"] for line in log[:8]])
    assert set(loaded.prompts) == set(road[0].tasks)
    task = road[0].tasks[0]
    assert np.array_equal(loaded.text().encode(task), loaded.prompts[task])
    with pytest.raises(EdgewamError, match="is of the family 'fast_wam', this training of 'aha_wam'"):
        train_policy(tiny.policy_training(road[0], road[1], road[2] / "latents", init_from=tmp_path / "policy"), tmp_path / "x")
    with pytest.raises(EdgewamError, match="rows of 'small' mean nothing to it"):
        train_policy(fast(road, words, text="small", init_from=tmp_path / "policy"), tmp_path / "x")


def test_sizes_and_family_belong_together(road: Road, words: Path) -> None:
    with pytest.raises(EdgewamError, match="A FastWamConfig holds no sizes of the family 'aha_wam'"):
        replace(fast(road, words), family="aha_wam")


def test_pictures_can_be_decoded_while_training(road: Road, words: Path, tmp_path: Path) -> None:
    config = fast(road, words, frames=True, num_workers=0, loop=replace(LOOP, steps=3))
    measured = train_policy(config, tmp_path / "frames")
    assert not (tmp_path / "frames.training/latents").exists() and np.isfinite(measured["action_loss"])
    assert load_policy(tmp_path / "frames").manifest.config["frames"] is True
    assert "frames" not in fast(road, words).settings(), "a run that caches latents is what it was before there was a choice"


def test_without_muon_everything_is_trained_by_adamw(road: Road, words: Path) -> None:
    from edgewam.training.example_windows import ExampleWindows
    from edgewam.training.policy import PolicyTask

    task = PolicyTask(fast(road, words), ExampleWindows(MODEL, LAYOUT, 2), {})
    (group,) = task.parameter_groups()
    assert group.optimizer == "adamw" and len(group.parameters) == len(list(task.module.parameters()))
    loss = task.loss(task.batch(0, np.random.default_rng(0)), torch.Generator().manual_seed(0))
    assert loss.weight == 2 and loss.value.isfinite()

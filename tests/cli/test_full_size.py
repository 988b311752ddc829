"""`train` and `distill` with a recipe of one's own, on a dataset in RoboTwin's layout: frames, statistics, warm start, plans."""

import json

import pytest
import torch
from safetensors.torch import save_file

from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.warm_start import PLANNER
from edgewam.training import step_count
from edgewam.training.policy_artifact import load_policy
from tests.cli.command import here
from tests.data.robotwin import robotwin
from tests.training import tiny

torch.set_num_threads(1)
POLICY, STUDENT = "tests.recipes.own:policy", "tests.recipes.own:student"
STILL = 3e-3  # two steps of AdamW at 1e-3 move no weight much further; other random weights lie 0.1 apart


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """Dataset, VAE, statistics, and a video DiT of the recipe's size."""
    folder = tmp_path_factory.mktemp("full_size")
    robotwin(folder / "data")
    tiny.vae_at(folder / "vae")
    here("data", "stats", folder / "data", folder / "stats.json").ok()
    torch.manual_seed(11)
    planner = {name: t for name, t in AhaWam(tiny.MODEL).state_dict().items() if name.startswith(PLANNER)}
    save_file({name.removeprefix(PLANNER): t for name, t in planner.items()}, folder / "wan.safetensors")
    return folder


@pytest.fixture(scope="module")
def policy(road):
    """What `train` makes of them in two steps."""
    done = here(
        "train", road / "data", road / "policy", "--recipe", POLICY, "--vae", road / "vae", "--text", "small", "--stats",
        road / "stats.json", "--warm-start", road / "wan.safetensors", "--steps", "2", "--threads", "1", "--json",
    ).ok()  # fmt: skip
    assert "warm start:" in done.err and "Wrote" in done.err
    return road / "policy", done.json


def test_a_dataset_in_robotwins_layout_trains_from_a_video_dit(road, policy):
    path, measured = policy
    assert measured["steps"] == 2 and all(value > 0 for value in measured.values() if isinstance(value, float))
    loaded = load_policy(path)
    wanted = json.loads((road / "stats.json").read_text())["action"]["default"]["global_mean"]
    assert loaded.stats.action.mean.tolist() == pytest.approx(wanted)
    torch.manual_seed(11)
    source = AhaWam(tiny.MODEL).state_dict()
    found = loaded.model.state_dict()
    for name in ("patch_embedding.weight", "blocks.1.ffn.0.weight"):
        torch.testing.assert_close(found[PLANNER + name], source[PLANNER + name], atol=STILL, rtol=1e-2)
    assert not (path.parent / "policy.training" / "latents").exists()  # pictures were encoded while it trained


def test_the_policy_is_distilled_with_a_recipe_and_the_same_frames(road, policy):
    done = here(
        "distill", policy[0], road / "data", road / "student", "--recipe", STUDENT, "--steps", "1", "--batches", "2", "--threads",
        "1", "--json",
    ).ok()  # fmt: skip
    assert done.json["steps"] == 1
    assert load_policy(road / "student").facts.ode_metadata["teacher_num_inference_steps"] == 4


def test_a_plan_names_parts_ranks_and_device_and_writes_nothing(road, monkeypatch):
    count = step_count.PassCount(forward_flops=1e12, backward_flops=2e12, frozen_flops=0.0, kept_bytes=1e9, peak_bytes=2e9)
    monkeypatch.setattr(step_count, "count_policy_pass", lambda *_: count)  # it has tests of its own
    command = ["train", road / "data", road / "plan", "--recipe", POLICY, "--dry-run", "--on", "nvidia-h200", "--ranks", "2"]
    done = here(*command, "--json").ok()
    plan = done.json
    assert plan["ranks"] == 2 and plan["full_size"]["fits"] and plan["full_size"]["step_s"] > 0
    (step,) = plan["steps"]
    # 86 steps to train on in two episodes, every fourth starts a window, six to a step
    assert "4 optimiser steps of 6 windows" in step["work"] and step["seconds"] > 0
    assert "Fits: " in done.err and "planner (video DiT)" in done.err and "an assumption until" in done.err
    assert not (road / "plan").exists() and not (road / "plan.training").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", STUDENT], "for students: edgewam distill"),
        (["--recipe", POLICY], "needs --vae and --text"),
        (["--recipe", "robotwin"], "Available: small, robotwin_ahawam"),
        (["--recipe", POLICY, "--part", "vae"], "full-size recipe trains a policy"),
        (["--recipe", POLICY, "--on", "h200"], "belong to --dry-run"),
        (["--recipe", POLICY, "--dry-run", "--on", "h2000"], "Unknown device 'h2000'"),
        (["--on", "h200"], "plan a full-size recipe"),
    ],
)
def test_what_does_not_go_together_is_refused(road, arguments, words):
    done = here("train", road / "data", road / "refused", *arguments)
    assert done.code == 1 and words in done.err, done.err


def test_a_policy_recipe_distils_nothing(road, policy):
    done = here("distill", policy[0], road / "data", road / "refused", "--recipe", POLICY)
    assert done.code == 1 and "for policies: edgewam train" in done.err


def test_a_teacher_of_another_family_than_the_recipes_is_refused(road, policy):
    done = here("distill", policy[0], road / "data", road / "refused", "--recipe", "robotwin_fastwam_ode")
    assert done.code == 1 and "is of the family 'aha_wam', the recipe robotwin_fastwam_ode is for 'fast_wam'" in done.err

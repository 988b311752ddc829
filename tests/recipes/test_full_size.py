"""Full-size recipes: released values, arithmetic of epochs and ranks, and plans that agree with real networks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from edgewam.core import plugins
from edgewam.core.errors import EdgewamError
from edgewam.data.windows import fast_wam_layout
from edgewam.flow.training import weight_constants
from edgewam.models.flow_loss import draw_noise
from edgewam.profiles.device import load_device
from edgewam.recipes import training_estimate
from edgewam.recipes.full_size import Cluster, Places, PolicyRecipe, Schedule, StudentRecipe, find_recipe, recipe_names
from edgewam.recipes.training_estimate import UTILISATION, estimate_policy, estimate_student, plan_steps
from edgewam.training import step_count
from edgewam.training.memory import AliveTensors
from edgewam.training.parallel import checkpoint_activations
from tests.recipes import own
from tests.training import tiny

torch.set_num_threads(1)
AHA_WAM = 7_349_428_556  # facts/aha_wam.md 2, from the manifests
PLACES = Places(dataset=Path("data"), vae=Path("vae"), text="cache", stats=Path("stats.json"), warm_start=(Path("wan"),))
# the facts' operations come from upstream's graph, ours joins texts and states once per sample
FLOPS = 0.02


@pytest.mark.parametrize(
    ("name", "family", "batch", "lr", "epochs", "steps", "horizon", "offset"),
    [  # facts/aha_wam.md 1, 6 and 9
        ("robotwin_ahawam", "aha_wam", 6, 5e-5, 5, 65, 64, 0),
        ("robotwin_ahawam_offset", "aha_wam", 16, 5e-5, 5, 97, 80, 15),
        ("robotwin_fastwam", "fast_wam", 16, 1e-4, 5, 33, 32, 0),
        ("libero_fastwam", "fast_wam", 16, 1e-4, 10, 33, 32, 0),
    ],
)
def test_policies_are_trained_as_released(name, family, batch, lr, epochs, steps, horizon, offset):
    recipe = find_recipe(name)
    assert isinstance(recipe, PolicyRecipe) and recipe.family == family
    schedule, layout, model = recipe.schedule, recipe.layout, recipe.model
    assert (schedule.batch_per_rank, schedule.lr, schedule.epochs, schedule.accumulate) == (batch, lr, epochs, 1)
    assert (layout.num_steps, layout.horizon, layout.max_offset) == (steps, horizon, offset) and model.horizon == horizon
    assert layout.chunk == model.chunk_size and layout.num_chunks == model.num_chunks
    assert layout.num_history == model.memory_slots and model.lambda_video == model.lambda_action == 1.0
    assert recipe.proprio_noise == 0 and recipe.start_stride == 1 and recipe.frames and recipe.recompute
    config = recipe.training(PLACES, Cluster(8, 48_000))
    loop = config.loop
    assert config.muon_lr is None and config.adamw_lr == lr and config.weight_decay == 1e-2 and config.batch_size == 8 * batch
    assert (loop.seed, loop.clip_norm, loop.final_lr, loop.ema_decay, loop.autocast) == (42, 1.0, 0.01, None, True)
    assert loop.steps == schedule.epochs * -(-48_000 // (8 * batch)) and loop.warmup_steps == int(0.05 * loop.steps)
    assert config.weights_dtype == "bfloat16" and config.frames and config.warm_start == PLACES.warm_start


def test_libero_has_two_cameras_and_extremes():
    recipe = find_recipe("libero_fastwam")
    assert (recipe.composition, recipe.normalisation) == ("side_by_side", "min/max")
    assert (recipe.model.image_height, recipe.model.image_width) == (224, 448)
    assert (recipe.model.action_dim, recipe.model.proprio_dim) == (7, 8)


@pytest.mark.parametrize("name", ["robotwin_ahawam_ode", "robotwin_ahawam_offset_ode", "robotwin_fastwam_ode"])
def test_students_are_distilled_as_released(name):
    recipe = find_recipe(name)
    assert isinstance(recipe, StudentRecipe) and recipe.teacher == find_recipe(name.removesuffix("_ode"))
    config = recipe.distillation(Path("teacher"), Path("data"), Cluster(4, 1000))
    assert (config.lr, config.weight_decay, config.anchor_draws, config.huber, config.shift) == (2e-5, 1e-2, 1, None, None)
    assert not config.rollout and config.num_action_steps == 2 and config.loop.accumulate == 4
    assert config.start_stride == 1 and config.frames, "windows are counted at every step, whatever an imported teacher says"
    plan = config.trajectories
    assert (plan.num_steps, plan.captured, plan.batch_size) == (16, (0, 1, 2, 4, 8, 12, 16), 64)
    assert plan.num_batches == 16 and config.loop.steps == 5 * 4  # 1000 windows in 16 batches, four to a step


@pytest.mark.parametrize(("ranks", "windows", "steps"), [(1, 48, 5 * 2), (2, 48, 5), (8, 49, 5), (1, 49, 5 * 3), (3, 1, 5)])
def test_epochs_become_steps(ranks, windows, steps):
    schedule = Schedule(batch_per_rank=6, lr=1.0, accumulate=4)
    assert schedule.steps(Cluster(ranks, windows)) == steps
    assert schedule.windows_per_step(ranks) == 24 * ranks


def test_all_recipes_have_names_and_unknown_ones_are_refused_with_what_there_is():
    assert {find_recipe(name).schedule.seed for name in recipe_names()} == {42} and len(recipe_names()) == 7
    with pytest.raises(EdgewamError, match=r"Available: small, robotwin_ahawam.*libero_fastwam"):
        find_recipe("robotwin")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.at_all:recipe", "Cannot import.*PYTHONPATH"),
        ("tests.recipes.own:missing", "no function 'missing'"),
        ("tests.recipes.own:number", "no function 'number'"),
        ("tests.recipes.own:no_recipe", "returns a int"),
    ],
)
def test_a_recipe_of_ones_own_that_is_none_says_why(name, words):
    with pytest.raises(EdgewamError, match=words):
        find_recipe(name)


def test_a_recipe_of_ones_own_derives_from_a_released_one():
    assert find_recipe("tests.recipes.own:policy").schedule.lr == 1e-3
    with pytest.raises(EdgewamError, match="at least one window"):
        Schedule(batch_per_rank=0, lr=1e-3)


@pytest.fixture(scope="module")
def full_size():
    return estimate_policy(find_recipe("robotwin_ahawam"), 8, load_device("h200"))


def test_parameters_of_the_plan_are_those_of_the_manifest(full_size):
    parts = {part.name: part.parameters for part in full_size.parts}
    assert sum(parts.values()) == AHA_WAM == sum(part.trained for part in full_size.parts)
    # facts/aha_wam.md 8
    assert (parts["planner (video DiT)"], parts["executor (action DiT)"]) == (4_999_787_712, 1_020_900_366)
    assert parts["router (editor)"] == 1_227_632_670


def test_memory_of_a_rank_follows_from_the_parameters(full_size):
    held = full_size.memory["loss and gradients"]
    assert held["weights"] == held["gradients"] == 4 * AHA_WAM // 8 and held["AdamW"] == 8 * AHA_WAM // 8
    assert held["gathered weights"] == 2 * AHA_WAM
    assert full_size.peak_bytes == sum(held.values()) and full_size.fits
    assert held["activations"] < full_size.kept_otherwise / 2  # what computing layers again is for


def test_operations_are_those_of_the_facts(full_size):
    # facts 8: a planner pass over 120 tokens is 1219.6 GFLOP; six windows of 3 frames with 6 of history, and the executor's parts
    tokens = 9 * 120
    planner = 1219.6e9 / 120 * tokens
    assert 0.8 * planner < full_size.model_flops / 6 / 2 < 1.1 * planner  # backward leaves the history out: less than twice
    seconds = full_size.seconds
    rate = UTILISATION * 989e12
    assert seconds["model"] == pytest.approx(full_size.model_flops / rate)
    assert full_size.recomputed_flops < 0.5 * full_size.model_flops and full_size.step_seconds == sum(seconds.values())


def test_a_students_jump_costs_what_the_facts_say():
    family, recipe = plugins.load("family", "aha_wam"), find_recipe("robotwin_ahawam_ode")
    count = step_count.count_student_pass(family, recipe.teacher.model, recipe.teacher.layout, 1, False, 16)
    # facts 8: 27.7 GFLOP a step and chunk after hoisting, 50.1 for the text and one state token
    jump = 4 * 27.7e9 + 50.1e9
    assert count.step.forward_flops == pytest.approx(jump, rel=FLOPS)
    rollout = count.rollout_flops - count.step.frozen_flops
    assert rollout == pytest.approx(16 * 4 * 27.7e9 + 50.1e9, rel=FLOPS)
    # keys and values of 30 layers, 4 chunks and 120 tokens, bfloat16 at least, are there while the student computes
    assert count.step.kept_bytes > 2 * 30 * 4 * 120 * 3072 * 2


def test_shallow_networks_tell_the_deep_one(monkeypatch):
    family = plugins.load("family", "fast_wam")  # the one with fewer operations
    sizes = replace(family.small(), num_layers=4)
    found = step_count.count_policy_pass(family, sizes, fast_wam_layout(), 2, False)
    monkeypatch.setattr(step_count, "_DEPTHS", (3, 4))  # the second of which is the network itself
    direct = step_count.count_policy_pass(family, sizes, fast_wam_layout(), 2, False)
    assert (found.forward_flops, found.backward_flops) == (direct.forward_flops, direct.backward_flops)
    assert found.kept_bytes == pytest.approx(direct.kept_bytes, rel=1e-6)
    assert found.peak_bytes == pytest.approx(direct.peak_bytes, rel=0.1)  # which layer is the worst may change


def test_fake_tensors_count_what_real_ones_hold_and_compute():
    family = plugins.load("family", "fast_wam")
    sizes, layout = replace(family.small(), num_layers=2), fast_wam_layout()

    def counted(mode: AliveTensors | FlopCounterMode) -> AliveTensors | FlopCounterMode:
        model = family.build(sizes)
        checkpoint_activations(family.BLOCKS(model)[:2])
        data = step_count._batch(sizes, layout, 2)
        noise = draw_noise(data, torch.Generator(), 1, 5.0)
        with mode:
            loss = family.training_loss(model, data, noise).total
            mode.held = mode.now if isinstance(mode, AliveTensors) else 0
            loss.backward()
        return mode

    weight_constants(5.0)
    with FakeTensorMode():
        fake = counted(step_count._Counter())
    assert fake.held == counted(AliveTensors()).held > 0
    assert fake.flops == counted(FlopCounterMode(display=False)).get_total_flops() > 0


def test_a_student_needs_its_teacher_and_little_else(monkeypatch):
    step = step_count.PassCount(forward_flops=1e12, backward_flops=2e12, frozen_flops=5e12, kept_bytes=1e9, peak_bytes=2e9)
    monkeypatch.setattr(step_count, "count_student_pass", lambda *_: step_count.StudentCount(step, 3e12, 5e9))
    full_size, rollout = estimate_student(own.student(), 2)
    held = full_size.memory["loss and gradients"]
    total = sum(part.parameters for part in full_size.parts)
    trained = sum(part.trained for part in full_size.parts)
    assert held["teacher"] == 4 * total and held["AdamW"] == 8 * trained // 2 < 4 * total and rollout == 3e12
    assert held["gradients of earlier passes"] == 4 * trained  # two passes to a step: whole until the last one
    assert full_size.model_flops == 2 * 8e12 and full_size.fits is None and full_size.step_seconds is None  # no device was named
    assert held["gathered weights"] < 2 * total  # the planner's and the router's layers are the teacher's work
    # frozen weights are made bfloat16 layer by layer: autocast keeps copies of trained ones only
    assert not any("bf16" in name for name in held)
    assert full_size.memory["teacher's trajectories"]["temporaries"] == 5e9
    executor = next(part for part in full_size.parts if part.name.startswith("executor"))
    assert trained == executor.parameters + 2 * tiny.MODEL.action_hidden_dim  # and the branch embedding


def test_a_plan_counts_steps_and_disk(monkeypatch, full_size, tmp_path):
    device, out = load_device("h200"), tmp_path / "out"
    monkeypatch.setattr(training_estimate, "estimate_student", lambda *_: (full_size, 1e12))
    monkeypatch.setattr(training_estimate, "estimate_policy", lambda *_: full_size)
    _, (rolling, training) = plan_steps(own.student(), Cluster(2, 101), Path("data"), out, None, device)
    assert "104 windows" in rolling.work and rolling.disk_bytes == 4 * 104 * 3 * 8 * 14
    assert rolling.duration.seconds == pytest.approx(104 * 1e12 / 2 / (UTILISATION * 989e12))
    assert "65 optimiser steps of 8 windows" in training.work  # 26 batches, two to a step, five epochs
    assert training.duration.seconds == pytest.approx(65 * full_size.step_seconds)
    assert training.disk["checkpoint"] == 12 * AHA_WAM
    _, (training,) = plan_steps(own.policy(), Cluster(2, 0), Path("data"), out, None, device)
    assert training.duration.seconds is None and "not there yet" in training.work
    _, (training,) = plan_steps(own.policy(), Cluster(2, 0), Path("data"), out, 7, device)
    assert training.duration.seconds is not None and training.work.startswith("7 optimiser steps")
    _, (training,) = plan_steps(own.policy(), Cluster(2, 0), Path("data"), out, 7, None)
    assert "--on h200" in training.duration.source

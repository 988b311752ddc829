"""Distillation closes the gap between few steps and the teacher, touches only the action expert, and resumes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewam.core.artifacts import read_manifest
from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.data.dataset import Dataset
from edgewam.data.frame_windows import FrameBatch, FrameLoader
from edgewam.data.windows import WindowBatch
from edgewam.distill import ode
from edgewam.distill.fidelity import fidelity
from edgewam.distill.ode import OdeDistillation, OdeTask, distill, prepare
from edgewam.distill.trajectories import DONE, TrajectoryPlan, build_trajectories, plan_noise
from edgewam.flow.solver import euler_table
from edgewam.models.aha_wam import condition, teacher_trajectory
from edgewam.recipes.deploy import compile_plan
from edgewam.training.frame_source import FrameSource
from edgewam.training.frames import held_out
from edgewam.training.log import read_log
from edgewam.training.policy import train_policy
from edgewam.training.policy_artifact import load_policy
from tests.training import tiny

PLAN = TrajectoryPlan(num_batches=6, batch_size=8)
BF16 = 0.1  # of actions around one, after sixteen steps whose products keep eight bits
Road = tuple[Dataset, Path, Path]


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    """(dataset, teacher artifact, directory)."""
    root = tmp_path_factory.mktemp("ode")
    dataset, vae = tiny.dataset_at(root / "dataset"), tiny.vae_at(root / "vae")
    loop = replace(tiny.LOOP, steps=80, warmup_steps=5)
    train_policy(tiny.policy_training(dataset, vae, root / "latents", loop=loop), root / "teacher")
    return dataset, root / "teacher", root


def config(road: Road, **changes: object) -> OdeDistillation:
    loop = replace(tiny.LOOP, steps=60, warmup_steps=2, ema_decay=None)
    plain = OdeDistillation(
        teacher=road[1], dataset=road[0].path, latents=road[2] / "latents", trajectories=PLAN, loop=loop, lr=2e-3
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def student(road: Road) -> tuple[Path, dict[str, object]]:
    out = road[2] / "student"
    return out, distill(config(road), out)


def test_the_gap_to_the_teacher_falls_at_one_and_two_steps_on_held_out_episodes(student: tuple[Path, dict[str, object]]) -> None:
    rms = student[1]["rms"]
    assert isinstance(rms, dict)
    for steps in (1, 2):
        assert rms[f"student_{steps}_to_16_normalised"] < 0.75 * rms[f"undistilled_{steps}_to_16_normalised"]
        assert rms[f"student_{steps}_to_16_rad"] < 0.75 * rms[f"undistilled_{steps}_to_16_rad"]
    log = read_log(student[0])
    assert np.mean([line["loss"] for line in log[-6:]]) < 0.5 * np.mean([line["loss"] for line in log[:6]])


def test_learning_through_its_own_steps_brings_a_student_nearer_at_just_that_many_steps(
    road: Road, student: tuple[Path, dict[str, object]]
) -> None:
    out = road[2] / "rolled"
    rolled, jumped = distill(config(road, anchor_draws=0, rollout=True), out)["rms"], student[1]["rms"]
    assert isinstance(jumped, dict)
    assert rolled["student_2_to_16_normalised"] < jumped["student_2_to_16_normalised"]
    assert "student_1_to_16_normalised" not in rolled  # it was not taught one step, and is worse at it:
    _, held, teacher = prepare(config(road), road[2] / "student.training")
    names = [f"joint_{i}" for i in range(14)]
    one = fidelity(teacher.family, teacher.model, load_policy(out).model, held, teacher.stats, names, names, (1,))["rms"]
    assert one["student_1_to_16_normalised"] > jumped["student_1_to_16_normalised"]
    with pytest.raises(EdgewamError, match="taught to take 2 steps and no other number"):
        compile_plan(out, num_action_steps=1)
    assert compile_plan(out).config["num_action_steps"] == compile_plan(out, num_action_steps=2).config["num_action_steps"] == 2
    assert compile_plan(student[0], num_action_steps=1).config["num_action_steps"] == 1


def test_a_student_may_have_its_own_schedule_and_hands_it_on(road: Road) -> None:
    own = config(road, shift=1.0, anchor_draws=0, rollout=True)
    task, held, teacher = prepare(own, road[2] / "student.training")
    names = [f"joint_{i}" for i in range(14)]
    rms = fidelity(teacher.family, teacher.model, task.module, held, teacher.stats, names[:6], names)["rms"]  # type: ignore[arg-type]
    assert rms["student_1_to_16_rad"] == rms["undistilled_1_to_16_rad"]  # one step ends where it ends on any schedule
    assert rms["student_2_to_16_rad"] != rms["undistilled_2_to_16_rad"]
    found = distill(own, road[2] / "equal_steps")["rms"]
    assert found["student_2_to_16_normalised"] < 0.75 * rms["student_2_to_16_normalised"]
    assert load_policy(road[2] / "equal_steps").model.config.shift == 1.0
    assert load_policy(road[1]).model.config.shift == 5.0
    following = prepare(config(road, init_from=road[2] / "equal_steps"), road[2] / "student.training")[0].module
    assert following.config.shift == 1.0  # type: ignore[union-attr]


def test_a_student_with_nothing_to_learn_from_is_refused(road: Road) -> None:
    with pytest.raises(EdgewamError, match="set rollout"):
        config(road, anchor_draws=0)
    with pytest.raises(EdgewamError, match="must be positive"):
        config(road, huber=0.0)
    with pytest.raises(EdgewamError, match="1 gives equal steps"):
        config(road, shift=0.0)


def test_only_the_action_expert_and_the_branch_embedding_change(road: Road, student: tuple[Path, dict[str, object]]) -> None:
    before, after = load_policy(road[1]).model.state_dict(), load_policy(student[0]).model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("mot.mixtures.action.", "mot.action_branch_embedding")) for name in changed)
    assert "mot.mixtures.action.blocks.1.ffn.0.weight" in changed


def test_the_student_says_where_it_comes_from(road: Road, student: tuple[Path, dict[str, object]]) -> None:
    loaded = load_policy(student[0])
    assert loaded.manifest.kind == "student"
    assert loaded.manifest.parents["teacher"] == read_manifest(road[1]).digest
    assert loaded.facts.num_action_steps == 2
    assert loaded.facts.ode_metadata is not None
    assert loaded.facts.ode_metadata["teacher_capture_step_indices"] == [0, 1, 2, 4, 8, 12, 16]


def test_a_cached_trajectory_is_the_teachers_from_the_noise_it_names(road: Road, student: tuple[Path, dict[str, object]]) -> None:
    task, _, teacher = prepare(config(road), road[2] / "student.training")
    batch = task.cache.source.batch(task.cache.choice(4))
    noise = plan_noise(batch, PLAN, 4)
    wanted = teacher_trajectory(teacher.model, condition(teacher.model, batch), noise)
    found = task.cache.batch(4)
    assert torch.equal(found[0], noise)
    assert torch.allclose(found, wanted.states, atol=1e-5)


def test_a_student_learns_at_the_timesteps_that_it_will_act_at(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Released teachers act with tables rounded to bf16, and their students inherit that: 832 instead of 833.3 at two steps."""
    float32, held, exact = prepare(config(road), road[2] / "student.training")
    monkeypatch.setattr(ode, "load_policy", lambda *given: replace(exact, facts=replace(exact.facts, sampler_tables="bf16")))
    task, _, teacher = prepare(config(road, trajectories=replace(PLAN, num_batches=1)), tmp_path)
    acting = euler_table(2, 5.0, "bf16").timesteps
    assert acting[1] == 832 and set(acting.tolist()) <= set(task._timesteps.tolist())
    assert not set(acting.tolist()) <= set(float32._timesteps.tolist())
    batch = task.cache.source.batch(task.cache.choice(0))
    noise, rounded = task.cache.batch(0)[0], task.cache.batch(0)[-1]
    ends = {
        tables: teacher_trajectory(teacher.model, condition(teacher.model, batch), noise, tables=tables).states[-1]  # type: ignore[arg-type]
        for tables in ("bf16", "float32")
    }
    torch.testing.assert_close(rounded, ends["bf16"], atol=1e-5, rtol=0)
    assert (rounded - ends["float32"]).abs().max() > 1e-3
    with pytest.raises(ArtifactError, match="were made with another tables"):
        build_trajectories(
            road[2] / "student.training" / "trajectories", teacher.family, teacher.model, task.cache.source,
            {name: task.identity[name] for name in ("teacher", "dataset", "vae")}, PLAN, tables="bf16",
        )  # fmt: skip
    names = [f"joint_{i}" for i in range(14)]
    found = [
        fidelity(teacher.family, teacher.model, teacher.model, held, teacher.stats, names[:6], names, (2,), tables=tables)["rms"]  # type: ignore[arg-type]
        for tables in ("bf16", "float32")
    ]
    assert found[0] != found[1], "what is measured is what acts"


@pytest.mark.parametrize("frames", [True, False])
def test_windows_start_as_in_the_teachers_training_or_as_often_as_is_asked_for(road: Road, tmp_path: Path, frames: bool) -> None:
    few = replace(PLAN, num_batches=1, batch_size=2)

    def of(stride: int | None) -> OdeTask:
        changes = {"latents": None, "frames": frames, "num_workers": 0, "start_stride": stride, "trajectories": few}
        return prepare(config(road, **changes), tmp_path)[0]

    dataset = road[0]
    lengths = dataset.lengths[: dataset.num_episodes - held_out(dataset.num_episodes)]
    assert of(None).cache.source.num_windows < lengths.sum() / 3, "the tiny training starts one at every sixth step"
    with pytest.raises(ArtifactError, match="another start_stride" if frames else "belongs to another plan"):
        of(1)
    shutil.rmtree(tmp_path)
    assert not frames or of(1).cache.source.num_windows == lengths.sum()


def test_an_undistilled_student_has_exactly_the_teachers_gap(road: Road) -> None:
    _, held, teacher = prepare(config(road), road[2] / "student.training")
    names = [f"joint_{i}" for i in range(14)]
    rms = fidelity(teacher.family, teacher.model, teacher.model, held, teacher.stats, names[:6], names)["rms"]
    for steps in (1, 2, 4):
        assert rms[f"student_{steps}_to_16_rad"] == rms[f"undistilled_{steps}_to_16_rad"]
    assert rms["undistilled_4_to_16_normalised"] < rms["undistilled_2_to_16_normalised"] < rms["undistilled_1_to_16_normalised"]


def test_rolling_out_goes_on_after_a_stop_and_refuses_another_teacher(road: Road, tmp_path: Path) -> None:
    task, _, teacher = prepare(config(road), road[2] / "student.training")
    identity, source = {"teacher": teacher.manifest.digest}, task.cache.source
    plan = replace(PLAN, focused=3)
    whole = build_trajectories(tmp_path / "whole", teacher.family, teacher.model, source, identity, plan)
    stopped = tmp_path / "stopped"
    seen: list[int] = []
    for stop_at in (2, 4):  # among the even batches, among the focused

        def stop(done: int, total: int, left: float, stop_at: int = stop_at) -> None:
            seen.append(done)
            if done == stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build_trajectories(stopped, teacher.family, teacher.model, source, identity, plan, stop)
    cache = build_trajectories(
        stopped, teacher.family, teacher.model, source, identity, plan, lambda done, total, left: seen.append(done)
    )
    assert seen == [1, 2, 3, 4, 5, 6]
    assert np.array_equal(cache.states, whole.states)
    assert np.array_equal(cache.states[:3], task.cache.states[:3])
    with pytest.raises(ArtifactError, match="another teacher"):
        build_trajectories(stopped, teacher.family, teacher.model, source, {"teacher": "x"}, plan)
    (stopped / "states.f32").write_bytes(b"")
    with pytest.raises(ArtifactError, match="missing or truncated"):
        build_trajectories(stopped, teacher.family, teacher.model, source, identity, plan)


def test_products_in_bfloat16_are_another_cache(road: Road, tmp_path: Path) -> None:
    task, _, teacher = prepare(config(road), road[2] / "student.training")
    plan, identity, source = replace(PLAN, num_batches=1), {"teacher": teacher.manifest.digest}, task.cache.source
    half = build_trajectories(tmp_path / "half", teacher.family, teacher.model, source, identity, plan, bfloat16=True)
    exact = task.cache.states
    distance = np.abs(half.states[0, -1] - exact[0, -1]).max()
    assert np.array_equal(half.states[0, 0], exact[0, 0]) and 0 < distance < BF16
    with pytest.raises(ArtifactError, match="another products"):
        build_trajectories(tmp_path / "half", teacher.family, teacher.model, source, identity, plan)


def test_pictures_are_read_ahead_in_the_order_in_which_batches_are_asked_for(road: Road, tmp_path: Path) -> None:
    """A worker's batch that nobody asks for next is decoded for nothing."""
    loop = replace(tiny.LOOP, steps=2, warmup_steps=1, ema_decay=None)
    plan = replace(PLAN, num_batches=4, batch_size=2, num_steps=2, captured=(0, 1, 2))
    frames = config(road, frames=True, num_workers=0, trajectories=plan, loop=loop, start_stride=1)
    asked: list[int] = []
    stream = FrameLoader.stream

    def counted(self: FrameLoader, windows: Iterable[WindowBatch]) -> Iterator[FrameBatch]:
        asked.append(1)
        return stream(self, windows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameLoader, "stream", counted)
        task = prepare(frames, tmp_path)[0]
        assert len(asked) == 1, "trajectories"
        source = task.cache.source
        assert isinstance(source, FrameSource) and source.sampler.start_stride == 1
        source.batch(task.cache.choice(task.batch(0, np.random.default_rng(0))))
        for index in range(1, 4):
            source.batch(task.cache.choice(task.batch(index, np.random.default_rng(index))))
        assert len(asked) == 2
    assert [task.batch(index, np.random.default_rng(0)) for index in (3, 4, 5)] == [3, 0, 1]


def test_a_teacher_that_gives_no_numbers_is_refused(road: Road, tmp_path: Path) -> None:
    task, _, teacher = prepare(config(road), road[2] / "student.training")
    broken = load_policy(road[1]).model
    torch.nn.init.constant_(broken.mot.action_branch_embedding, float("nan"))
    with pytest.raises(EdgewamError, match="not finite in batch 0"):
        build_trajectories(
            tmp_path,
            teacher.family,
            broken,
            task.cache.source,
            {"teacher": teacher.manifest.digest},
            PLAN,
        )
    assert not (tmp_path / DONE).exists()


def test_distilling_from_something_else_than_a_policy_is_refused(road: Road, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="policy is needed"):
        distill(config(road, teacher=road[2] / "vae"), tmp_path / "student")
    shutil.copytree(road[1], road[2] / "copied")
    (road[2] / "copied/model.safetensors").write_bytes(b"short")
    with pytest.raises(ArtifactError, match="truncated or was changed"):
        distill(config(road, teacher=road[2] / "copied"), tmp_path / "student")


def test_weights_trained_with_prefixes_say_so_from_teacher_to_bundle(road: Road, tmp_path: Path) -> None:
    dataset, plain_teacher, root = road
    loop = replace(tiny.LOOP, steps=3, warmup_steps=1)
    with pytest.raises(EdgewamError, match="trained with prefixes of up to 0 rows"):
        distill(config(road, trajectories=replace(PLAN, max_prefix=2)), tmp_path / "none")
    with pytest.raises(EdgewamError, match="from 0 to 3"):
        tiny.policy_training(dataset, root / "vae", root / "latents", max_prefix=4)
    train_policy(tiny.policy_training(dataset, root / "vae", root / "latents", loop=loop, max_prefix=3), tmp_path / "teacher")
    assert compile_plan(tmp_path / "teacher").host["max_prefix"] == 3
    plan = replace(PLAN, num_batches=1, max_prefix=2)
    limits = {"steps": 2, "warmup_steps": 1, "ema_decay": None}
    distil = config(road, teacher=tmp_path / "teacher", trajectories=plan, loop=replace(tiny.LOOP, **limits))  # type: ignore[arg-type]
    distill(replace(distil, anchor_draws=1, rollout=True), tmp_path / "student")
    host = compile_plan(tmp_path / "student").host
    assert (host["prefix_trained"], host["max_prefix"]) == (True, 2)
    assert "prefix_trained" not in compile_plan(plain_teacher).host and load_policy(plain_teacher).facts.max_prefix == 0


def test_a_plan_without_prefixes_is_written_as_before_there_were_any() -> None:
    assert "max_prefix" not in PLAN.to_json() and replace(PLAN, max_prefix=2).to_json()["max_prefix"] == 2
    assert tuple(PLAN.to_json()) == ("num_batches", "focused", "batch_size", "seed", "num_steps", "captured")

"""The scripted experts do their tasks through the whole bridge: real physics, real cameras, real time or lockstep."""

from __future__ import annotations

import pytest

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.evaluation.evaluate import evaluate
from edgewam.robot_bridge.evaluation.lockstep import LockstepSettings
from edgewam.robot_bridge.robots.aloha_task import load_task
from edgewam.robot_bridge.run import run

pytest.importorskip("mujoco", reason="needs edgewam[sim]")
EXPERT = "tests.robot_bridge.expert.expert"


def test_the_expert_succeeds_in_real_time_under_the_safety_filter():
    report = run(EXPERT, {}, robot="aloha_sim", seconds=6.5, seed=1000)
    assert report.is_complete and report.violations == report.violations_in_log == 0
    assert report.episodes[0]["seed"] == 1000 and report.episodes[0]["strict_success"]
    assert report.frames > 50 and report.observation_to_command_ms.p50 > 5  # drawing alone takes longer than that


def test_the_expert_succeeds_in_lockstep_and_survives_a_declared_latency():
    # its targets are indexed by time, so a latency that leaves no gap changes nothing but the first ticks
    settings = LockstepSettings(latency_ticks=2, execute_ticks=14)
    prompt = evaluate(EXPERT, {}, [1000, 1001], workers=1)
    late = evaluate(EXPERT, {}, [1000, 1001], workers=2, settings=settings)
    assert prompt.strict.rate == late.strict.rate == 1.0
    assert prompt.held_ticks == 0 and late.held_ticks == 2 * 2


@pytest.mark.parametrize("task", ["transfer_cube_random", "insertion"])
def test_a_task_reaches_robot_and_prompt_in_lockstep(task, tmp_path):
    path = tmp_path / "results.jsonl"
    report = evaluate(EXPERT, {"task": task}, [1000], task=task, workers=1, results=path)
    assert report.strict.rate == 1.0
    assert report.config["robot_options"] == {"task": task} and report.config["prompt"] == load_task(task).prompt
    assert report.config["settings"]["max_ticks"] == load_task(task).episode_ticks
    with pytest.raises(EdgewamError, match="another configuration"):  # never mixed with the results of another task
        evaluate(EXPERT, {"task": task}, [1001], workers=1, results=path)


def test_the_default_task_is_recorded_the_same_whether_named_or_not(tmp_path):
    path, settings = tmp_path / "results.jsonl", LockstepSettings(max_ticks=16)
    evaluate(EXPERT, {}, [1000], workers=1, settings=settings, results=path)
    assert len(evaluate(EXPERT, {}, [1000], task="transfer_cube", settings=settings, results=path).episodes) == 1


def test_a_task_s_scene_and_colours_reach_the_camera_process_in_real_time():
    task = "transfer_cube_random"
    report = run(EXPERT, {"task": task}, task=task, seconds=1.5, seed=1000)
    assert report.is_complete and report.robot_options == {"task": task}
    assert report.frames > 5 and report.chunks_applied > 0 and report.violations == report.violations_in_log == 0

"""The scripted expert hands the cube over through the whole bridge: real physics, real cameras, real time or lockstep."""

from __future__ import annotations

import pytest

from edgewam.robot_bridge.evaluate import evaluate
from edgewam.robot_bridge.lockstep import LockstepSettings
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

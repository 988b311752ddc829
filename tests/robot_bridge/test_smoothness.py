import numpy as np
import pytest

from edgewam.robot_bridge.counting.smoothness import Smoothness, smoothness

HZ, VELOCITY = 50.0, np.array([2.0, 5.0])
PER_TICK = VELOCITY / HZ


def test_a_cubic_path_has_its_third_derivative_everywhere():
    ticks = np.arange(40.0)
    commands = [PER_TICK * t**3 / 6 for t in ticks]  # third difference: one velocity limit per tick
    found = smoothness(commands, [16, 32], VELOCITY, HZ)
    assert found.seam_jerk == pytest.approx(1.0) and found.inner_jerk == pytest.approx(1.0)


def test_a_jump_between_chunks_is_seen_at_the_seam_and_nowhere_else():
    commands = [PER_TICK * (0.1 * t + (0.5 if t >= 16 else 0.0)) for t in range(32)]
    found = smoothness(commands, [16], VELOCITY, HZ)
    # a step of half a tick's travel has the third differences 1, -2, 1 times 0.5
    assert found.seam_jerk == pytest.approx(0.5 * np.sqrt(6 / 3))
    assert found.inner_jerk == pytest.approx(0.0, abs=1e-9)
    elsewhere = smoothness(commands, [8], VELOCITY, HZ)
    assert elsewhere.seam_jerk == pytest.approx(0.0, abs=1e-9) and elsewhere.inner_jerk > 0.1


def test_too_short_to_have_a_jerk():
    assert smoothness([np.zeros(2)] * 3, [1], VELOCITY, HZ) == Smoothness(None, None)
    assert smoothness([np.zeros(2)] * 5, [], VELOCITY, HZ) == Smoothness(None, 0.0)

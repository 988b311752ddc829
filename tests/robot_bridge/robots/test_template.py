"""The template for a real arm keeps what its comments promise; the contract of every robot runs over it too."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgewam.core.errors import EdgewamError
from edgewam.core.records import CAMERAS
from examples import my_arm


@pytest.fixture
def arm():
    arm = my_arm.make()
    yield arm
    arm.close()


def test_it_fits_the_policy_that_ships_with_edgewam():
    assert my_arm.SPEC.num_joints == 14 and tuple(my_arm.SPEC.camera_shapes) == CAMERAS


def test_a_stopped_gripper_keeps_its_command_and_the_joints_their_pose(arm):
    target = arm.observe().state + 0.5
    arm.command(target)
    time.sleep(0.03)
    arm.stop()
    time.sleep(0.5)
    state = arm.observe().state
    grippers = [j for j, name in enumerate(my_arm.SPEC.joint_names) if name.endswith("gripper")]
    np.testing.assert_allclose(state[grippers], target[grippers], atol=1e-3)
    others = np.delete(np.arange(14), grippers)
    assert (np.abs(state - target)[others] > 0.1).all()


def test_a_stop_before_any_command_keeps_even_the_gripper_where_it_is(arm, monkeypatch):
    moved = np.full(14, 0.3) * my_arm.TICKS_PER_UNIT  # by hand, since it was opened
    monkeypatch.setattr(arm._bus, "read_positions", lambda: moved)
    arm.stop()
    np.testing.assert_allclose(arm._bus._goals, moved)


def test_opening_and_resetting_it_moves_nothing(arm):
    before = arm.observe().state
    arm.reset(3)
    time.sleep(0.05)
    np.testing.assert_array_equal(arm.observe().state, before)


def test_a_silent_bus_is_an_error_that_says_what_to_check(arm, monkeypatch):
    def silent(self):
        raise OSError("timed out")

    monkeypatch.setattr(my_arm.FakeBus, "read_positions", silent)
    with pytest.raises(EdgewamError, match="Check power and cable"):
        arm.observe()


def test_every_place_to_fill_in_is_numbered():
    text = Path(my_arm.__file__).read_text()
    assert all(f"# {number}. " in text for number in range(1, 6)) and "five numbered places" in text


def test_a_copy_is_found_where_the_command_is_started(tmp_path):
    """By the console script too, whose sys.path does not have the working directory."""
    (tmp_path / "robots").mkdir()
    (tmp_path / "robots/mine.py").write_text(Path(my_arm.__file__).read_text())
    script = tmp_path / "bin/edgewam"
    script.parent.mkdir()
    script.write_text("from edgewam.cli import main\nmain()\n")
    command = [sys.executable, str(script), "run", "--robot", "robots.mine", "--task", "none"]
    environment = {**os.environ, "PYTHONPATH": str(Path(my_arm.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Robot 'robots.mine' has no tasks to choose from" in done.stderr

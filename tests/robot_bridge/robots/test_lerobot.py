"""The LeRobot adapter: names, units and order are those of the description, and nothing is guessed."""

import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgewam.core.errors import ContractError
from edgewam.robot_bridge.robots.lerobot import LeRobotArm, LeRobotCameras
from edgewam.robot_bridge.robots.lerobot_description import Description
from tests.robot_bridge.robots import lerobot_arm
from tests.robot_bridge.robots.lerobot_double import ArmDouble

ROOT = Path(__file__).parents[3]
FILE = Path(lerobot_arm.__file__).with_suffix(".toml")
START = np.array([np.deg2rad(-20.0), -1.57 * 10 / 90, 0.4])  # lift, pan, gripper of the double


@pytest.fixture
def description():
    return Description.load(FILE)


@pytest.fixture
def arm(description):
    arm = LeRobotArm(description)
    yield arm
    arm.close()


def with_options(description, **options):
    return replace(description, robot=replace(description.robot, options={**description.robot.options, **options}))


def test_states_come_in_our_order_and_units(arm):
    np.testing.assert_allclose(arm.observe().state, START, rtol=1e-6)


def test_commands_leave_in_lerobot_s_names_and_units(arm):
    arm.command([np.deg2rad(30.0), 0.785, 0.25])
    name, action = arm._device.calls[-1]
    assert name == "send_action"
    assert action == {"lift.pos": pytest.approx(30.0), "pan.pos": pytest.approx(-45.0), "gripper.pos": pytest.approx(25.0)}


def test_a_command_beyond_the_limits_leaves_as_the_limit(arm):
    arm.command([9.0, -9.0, 9.0])
    assert arm._device.calls[-1][1]["lift.pos"] == pytest.approx(np.rad2deg(1.0))
    assert arm._device.calls[-1][1]["gripper.pos"] == pytest.approx(100.0)


def test_a_malformed_command_sends_nothing(arm):
    before = list(arm._device.calls)
    with pytest.raises(ContractError, match="not finite at pan"):
        arm.command([0.0, np.nan, 0.5])
    assert arm._device.calls == before


def test_stop_sends_the_measured_pose_but_the_gripper_keeps_its_command(arm):
    arm.command([1.0, 1.0, 0.0])
    arm.stop()
    action = arm._device.calls[-1][1]
    assert action["gripper.pos"] == 0.0
    assert -20.0 <= action["lift.pos"] < 0.0, "it had hardly left its start"


def test_it_connects_without_calibrating_and_disconnects_once(description):
    arm = LeRobotArm(description)
    assert arm._device.calls == [("connect", False)], "opening it sends nothing"
    arm.close()
    arm.close()
    assert arm._device.calls[1:] == [("disconnect",)]


def test_what_lerobot_raises_names_the_robot_and_what_failed(arm):
    arm._device.dead = True
    with pytest.raises(ContractError, match="Cannot read robot 'lerobot_arm': ConnectionError: the bus is silent"):
        arm.observe()
    with pytest.raises(ContractError, match="Cannot command robot"):
        arm.command(START)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dead": True}, "Cannot connect to robot 'lerobot_arm'"),
        ({"calibrated": False}, "lerobot-calibrate"),
        ({"cameras": ["front"]}, r"Leave them out of \[robot.options\]"),
        ({"speed": 3}, "cannot be made: TypeError"),
    ],
)
def test_a_robot_that_cannot_be_driven_is_refused_with_the_next_action(description, options, message):
    with pytest.raises(ContractError, match=message):
        LeRobotArm(with_options(description, **options))


def test_whether_the_arm_may_fall_at_the_end_must_be_said(description):
    silent = replace(description, robot=replace(description.robot, options={"port": "/dev/null"}))
    with pytest.raises(ContractError, match="does not say disable_torque_on_disconnect"):
        LeRobotArm(silent)


def test_every_joint_that_is_commanded_must_be_described(description):
    with pytest.raises(ContractError, match="Describe exactly what it is commanded by"):
        LeRobotArm(replace(description, features=("lift.pos", "pan.pos", "jaw.pos")))


def test_a_missing_package_is_named(description):
    absent = replace(description, robot=replace(description.robot, make="lerobot_that_is_not_here.Config"))
    with pytest.raises(ContractError, match="install LeRobot into this environment"):
        LeRobotArm(absent)


def test_a_broken_camera_is_left_out_and_the_others_go_on(description):
    camera = description.cameras["cam_high"]
    broken = replace(camera, options={"broken": True})
    both = replace(description, cameras={"cam_high": camera, "wrist": broken})
    cameras = LeRobotCameras(both)
    assert set(cameras.grab()) == {"cam_high"}
    cameras.close()


def test_a_camera_that_stays_broken_raises_so_that_it_is_opened_again(description, monkeypatch):
    from edgewam.robot_bridge.robots import lerobot

    broken = replace(description.cameras["cam_high"], options={"broken": True})
    cameras = LeRobotCameras(replace(description, cameras={"cam_high": broken}))
    assert cameras.grab() == {}
    monkeypatch.setattr(lerobot, "_BROKEN_NS", 0)
    with pytest.raises(TimeoutError, match="no frame"):
        cameras.grab()
    cameras.close()


def test_a_stop_before_any_command_keeps_every_joint_where_it_is(arm):
    arm._device._pose["gripper.pos"] = arm._device._goal["gripper.pos"] = 80.0  # moved by hand since it was opened
    arm.stop()
    assert arm._device.calls[-1][1]["gripper.pos"] == pytest.approx(80.0)


def test_a_camera_without_stamps_is_stamped_before_its_read(description):
    camera = replace(description.cameras["cam_high"], options={"stamped": False})
    cameras = LeRobotCameras(replace(description, cameras={"cam_high": camera}))
    first, second = cameras.grab()["cam_high"], cameras.grab()["cam_high"]
    assert 0 < first.t_ns < second.t_ns
    cameras.close()


def test_a_frame_that_was_already_given_is_not_given_again(description, monkeypatch):
    from tests.robot_bridge.robots.lerobot_double import CameraDouble

    monkeypatch.setattr(CameraDouble, "latest_timestamp", 12.5)
    cameras = LeRobotCameras(description)
    assert cameras.grab()["cam_high"].t_ns == 12_500_000_000
    assert cameras.grab() == {}
    cameras.close()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('unit = "deg"', "", "unit must be 'rad', 'deg' or 'linear', got None"),
        ('unit = "deg"', 'unit = "turns"', "got 'turns'"),
        ("from = [0, 100]", "", "'from' is missing"),
        ("from = [0, 100]", "from = [100, 100]", "two different, finite numbers"),
        ("from = [0, 100]", "from = [0, nan]", "two different, finite numbers"),
        ("from = [0, 100]", "from = [0, inf]", "two different, finite numbers"),
        ("upper = 1.5", "", "joint 'pan': 'upper' is missing"),
        ("upper = 1.5", "upper = -2", "limits or rates contradict"),
        ("camera_hz = 25", "camera_hz = 30", "a multiple of camera_hz"),
        ("max_velocity = 4.0", "max_velocity = 0", "max_velocity > 0"),
        ("max_velocity = 4.0", "max_velocty = 4.0", "unknown entries max_velocty"),
        ("max_velocity = 4.0", "max_velocity = 4.0\nmax_acceleration = 9.0", "joint 'lift': 'max_acceleration' is missing"),
        ("shape = [4, 6, 3]", "shape = [4, 6]", "height, width, 3"),
        ("[cameras.cam_high]", "[[", "Cannot read the robot description"),
        ('name = "lerobot_arm"', "", "'name' is missing"),
    ],
)
def test_an_incomplete_description_is_refused_at_its_place(tmp_path, old, new, message):
    text = FILE.read_text()
    assert old in text
    path = tmp_path / "arm.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ContractError, match=message):
        Description.load(path)


def test_the_shipped_example_is_complete_and_cautious():
    description = Description.load(ROOT / "examples/so101.toml")
    assert description.spec.name == "so101" and description.spec.num_joints == 6
    assert description.spec.max_velocity.max() <= 2.0
    assert tomllib.loads((ROOT / "examples/so101.toml").read_text())["robot"]["options"]["disable_torque_on_disconnect"] is False
    np.testing.assert_allclose(description.scale[:5], np.pi / 180)


def test_lerobot_is_not_imported_before_a_robot_is_made():
    code = (
        "import sys, examples.so101, edgewam.robot_bridge.robots.lerobot as ours\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'lerobot']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


def test_the_double_offers_what_lerobot_documents():
    for name in ("connect", "get_observation", "send_action", "disconnect", "observation_features", "action_features"):
        assert hasattr(ArmDouble(), name)

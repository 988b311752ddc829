"""A LeRobot robot of test doubles as a robot of the bridge, the way a user writes one."""

from pathlib import Path

from edgewam.robot_bridge.robots.lerobot import from_description

SPEC, make, make_cameras = from_description(Path(__file__).with_name("lerobot_arm.toml"))

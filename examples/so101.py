"""A LeRobot SO-101 arm as a robot of the bridge.  Copy this file and so101.toml, and measure every number in that one."""

from pathlib import Path

from edgewam.robot_bridge.robots.lerobot import from_description

SPEC, make, make_cameras = from_description(Path(__file__).with_name("so101.toml"))

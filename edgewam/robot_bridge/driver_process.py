"""The driver process: the robot behind the bridge, and the last one to hold on to it.

A simulator is driven by `driver_simulator.py`, which is its clock, any other robot by `driver_robot.py`.  Whatever ends this
process in order, the robot is told to stop first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewam.core import plugins
from edgewam.robot_bridge.child import Link
from edgewam.robot_bridge.driver_robot import RobotDriver
from edgewam.robot_bridge.driver_simulator import SimulatorDriver
from edgewam.robot_bridge.robot import Simulator


def run(config: Mapping[str, Any], link: Link) -> dict[str, Any]:
    """Serve the robot until told to stop and io sends no more; returns episodes that ended, errors, permissions."""
    robot = plugins.load("robot", config["robot"]).make(render=False, **config["robot_options"])
    try:
        if isinstance(robot, Simulator):
            return SimulatorDriver(config, link, robot).run()
        return RobotDriver(config, link, robot).run()
    finally:
        try:
            robot.stop()
        finally:
            robot.close()

"""The driver process: the robot behind the bridge, and the last one to hold on to it.

A simulator is driven by `driver_simulator.py`, which is its clock, any other robot by `driver_robot.py`.  Whatever ends this
process in order, a robot that it has moved is told to stop first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewam.core import plugins
from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.clock import now_ns, sleep_until
from edgewam.robot_bridge.processes.child import Link
from edgewam.robot_bridge.processes.driver_robot import RobotDriver
from edgewam.robot_bridge.processes.driver_simulator import SimulatorDriver
from edgewam.robot_bridge.robot import Robot, Simulator

STOP_ATTEMPTS, RETRY_NS = 5, 20_000_000


def run(config: Mapping[str, Any], link: Link) -> dict[str, Any]:
    """Serve the robot until told to stop and io sends no more; returns episodes that ended, errors, permissions."""
    robot = plugins.load("robot", config["robot"]).make(render=False, **config["robot_options"])
    try:
        is_simulator = isinstance(robot, Simulator)
        driver = SimulatorDriver(config, link, robot) if is_simulator else RobotDriver(config, link, robot)
        try:
            return driver.run()
        finally:
            if driver.was_moved:
                stop(robot, config["robot"])
    finally:
        robot.close()


def stop(robot: Robot, name: str) -> None:
    """Tell a robot to stop for good, several times if need be.

    Raises:
        EdgewamError: it does not listen.
    """
    for attempt in range(1, STOP_ATTEMPTS + 1):
        try:
            return robot.stop()
        except Exception as error:  # a bus that was busy just then
            if attempt == STOP_ATTEMPTS:
                raise EdgewamError(f"Robot '{name}' could not be told to stop: {error}. Use its own emergency stop.") from error
            sleep_until(now_ns() + RETRY_NS)

"""The same robot as one that is no simulator: it moves by itself, and its cameras have a clock of their own."""

from __future__ import annotations

import time

import numpy as np

from edgewam.core.records import Observation
from edgewam.robot_bridge.robot import CameraImage
from tests.robot_bridge.faults import robot
from tests.robot_bridge.faults.robot import SPEC, active, pictures

__all__ = ["SPEC", "make", "make_cameras"]

LATE_NS = 200_000_000


def make(*, render: bool = True) -> RealRobot:
    """At the wave's first pose; making it moves nothing."""
    return RealRobot()


def make_cameras() -> RealCameras:
    """Both cameras."""
    return RealCameras()


class RealRobot:
    """Goes where it is told at once."""

    spec = SPEC

    def __init__(self) -> None:
        self._robot = robot.FaultyRobot()

    def reset(self, seed: int) -> None:
        """A real robot stays where it is."""

    def observe(self) -> Observation:
        """Joints."""
        return self._robot.observe()

    def command(self, target: np.ndarray) -> None:
        """Go there."""
        self._robot.command(target)
        self._robot.advance()

    def stop(self) -> None:
        """Hold."""
        self._robot.stop()

    def close(self) -> None:
        """The end of the diary."""
        self._robot.close()


class RealCameras:
    """Grey images with their own stamps; `camera_freeze` and `camera_late` are theirs alone."""

    def __init__(self) -> None:
        self._begin_ns = time.monotonic_ns()
        self._last: dict[str, CameraImage] = {}

    def grab(self) -> dict[str, CameraImage]:
        """The newest images."""
        now = time.monotonic_ns()
        if active() == "camera_freeze" and self._last:
            return self._last
        images = {name: CameraImage(image, now) for name, image in pictures((now - self._begin_ns) // 20_000_000).items()}
        if active() == "camera_late":
            images["cam_wrist"] = CameraImage(images["cam_wrist"].image, now - LATE_NS)
        self._last = images
        return images

    def close(self) -> None:
        """Nothing to release."""

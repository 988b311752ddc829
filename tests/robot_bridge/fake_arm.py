"""A real arm as far as the bridge can tell: no clock of ours, two joints, two cameras, and a journal of what was done to it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from edgewam.core.records import Observation
from edgewam.robot_bridge.robot import CameraImage, RobotSpec

ROBOT = "tests.robot_bridge.fake_arm"

SPEC = RobotSpec(
    name="fake_arm",
    joint_names=("elbow", "gripper"),
    lower=np.array([-1.0, 0.0]),
    upper=np.array([1.0, 1.0]),
    max_velocity=np.array([3.0, 5.0]),
    control_hz=50.0,
    camera_shapes={"cam_high": (4, 6, 3), "cam_low": (4, 6, 3)},
    camera_hz=25.0,
    prompts=("reach",),
)


def make(*, render: bool = True, journal: str | None = None) -> FakeArm:
    """Where somebody left it."""
    return FakeArm(journal)


def make_cameras(*, journal: str | None = None) -> FakeCameras:
    """Two cameras that see nothing in particular; a file `<journal>.lost` makes the second one raise nothing and give nothing."""
    return FakeCameras(journal)


class FakeArm:
    """Goes where it is told at once; raises while `fault` names what to raise at."""

    spec = SPEC

    def __init__(self, journal: str | None = None):
        self._journal = journal
        self.joints = np.array([0.1, 0.5])
        self.calls: list[str] = []
        self.fault = ""

    def _do(self, what):
        self.calls.append(what)
        if self._journal and what != "observe":
            with open(self._journal, "a") as file:
                file.write(f"{what} {time.monotonic_ns()}\n")
        if what == self.fault:
            raise OSError(f"bus error at {what}")

    def reset(self, seed):
        """Nobody may call this on an arm that a person stands beside."""
        self._do("reset")

    def observe(self):
        """State only."""
        self._do("observe")
        return Observation({}, self.joints.astype(np.float32), 0, time.monotonic_ns())

    def command(self, target):
        """At once."""
        self._do("command")
        self.joints = SPEC.checked(target)

    def stop(self):
        """Hold."""
        self._do("stop")

    def close(self):
        """Release."""
        self._do("close")


class FakeCameras:
    """Grey images, a little brighter each time."""

    def __init__(self, journal: str | None = None):
        self._lost = Path(f"{journal}.lost") if journal else None
        self._count = 0

    def grab(self):
        """Both cameras, or the first one alone."""
        self._count += 1
        image = np.full((4, 6, 3), 100 + self._count % 100, np.uint8)
        images = {name: CameraImage(image, time.monotonic_ns()) for name in SPEC.camera_shapes}
        if self._lost and self._lost.exists():
            del images["cam_low"]
        return images

    def close(self):
        """Nothing to release."""


def journal_of(path: str) -> list[str]:
    """What was done to the arm, in order."""
    return [line.split()[0] for line in Path(path).read_text().splitlines()] if os.path.exists(path) else []

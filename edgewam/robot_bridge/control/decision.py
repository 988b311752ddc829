"""What a control tick knows of the robot and its helpers, and what it decides: plain data around `Controller.step`."""

from __future__ import annotations

from dataclasses import dataclass

from edgewam.robot_bridge.control.chunks import Reject
from edgewam.robot_bridge.control.modes import Cause, Mode
from edgewam.robot_bridge.control.safety import Vector
from edgewam.robot_bridge.records.shm_record import Value


@dataclass(frozen=True)
class Sensed:
    """The robot's newest report: joint state [D], its episode and when it was measured."""

    state: Vector
    episode: int
    t_ns: int


@dataclass(frozen=True)
class Health:
    """Age of the oldest camera image, and of the engine's last sign of life."""

    camera_age_ns: int
    engine_age_ns: int


@dataclass(frozen=True)
class Decision:
    """What a tick decided.

    command: None before the robot has reported, and while it is armed but stands outside of its range.
    is_live: the arm is armed, and anchored where it stood then, or it is still being braked.  Nothing else may reach a real
    robot, whatever has become of the arming by the time the driver looks.
    chunk: the newest one that supplied the command; row: its row.
    is_seam: first command of a chunk that took over from another one.  is_anchor: the robot's pose was taken anew.
    The clamp masks have bit j for joint j and belong to commands that a chunk supplied.
    """

    mode: Mode
    cause: Cause
    command: Vector | None
    is_live: bool = False
    reject: Reject = Reject.NONE
    chunk: Value | None = None
    row: int = -1
    num_blended: int = 0
    is_seam: bool = False
    range_clamps: int = 0
    step_clamps: int = 0
    acceleration_clamps: int = 0
    workspace: bool = False
    is_anchor: bool = False
    is_violation: bool = False

"""Smooth arm paths: minimum jerk in grasp-point space between waypoints, through closed-form kinematics."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewam.robot_bridge.robot import Vector
from edgewam.robot_bridge.robots import aloha_kinematics as kinematics
from edgewam.robot_bridge.robots import aloha_scene as scene

OPEN, CLOSED = 1.0, 0.0  # grippers


@dataclass(frozen=True)
class Waypoint:
    """Where the grasp point of one hand is at a control tick: point [3] in metres, pitch and roll in rad, gripper 0..1."""

    tick: int
    point: Vector
    pitch: float
    roll: float
    gripper: float


def start_pose(side: str) -> tuple[Vector, float, float, float]:
    """Point, pitch, roll and gripper of an arm at the start of every episode."""
    state = scene.to_joints(scene.START_QPOS)
    first = 0 if side == "left" else 7
    point, pitch, roll = kinematics.forward(side, state[None, first : first + 6])
    return point[0], float(pitch[0]), float(roll[0]), float(state[first + 6])


def joint_targets(left: Sequence[Waypoint], right: Sequence[Waypoint], num_ticks: int) -> npt.NDArray[np.float32]:
    """Joint targets [num_ticks, 14] of both arms; each holds its last waypoint."""
    return np.concatenate([_path("left", left, num_ticks), _path("right", right, num_ticks)], axis=1).astype(np.float32)


def _path(side: str, waypoints: Sequence[Waypoint], num_ticks: int) -> Vector:
    """Minimum-jerk path through the waypoints as joints and gripper [num_ticks, 7]."""
    tick = np.arange(1, num_ticks + 1)  # the target of a tick is where the arm shall be at its end
    rows = np.array([[*w.point, w.pitch, w.roll, w.gripper] for w in waypoints])
    path = np.repeat(rows[-1:], num_ticks, axis=0)
    for i, (start, end) in enumerate(itertools.pairwise(waypoints)):
        inside = (tick > start.tick) & (tick <= end.tick)
        s = (tick[inside] - start.tick) / max(end.tick - start.tick, 1)
        blend = s**3 * (10 - 15 * s + 6 * s**2)
        path[inside] = rows[i] + blend[:, None] * (rows[i + 1] - rows[i])
    joints = kinematics.inverse(side, path[:, :3], path[:, 3], path[:, 4])
    return np.concatenate([joints, path[:, 5:]], axis=1)

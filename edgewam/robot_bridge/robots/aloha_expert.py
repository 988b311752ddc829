"""A scripted expert for ALOHA TransferCube: from a cube position to 280 joint targets.

The right hand picks the cube and offers it, the left hand takes it, the right hand lets go and leaves, both hold still.
Paths are minimum-jerk in grasp-point space through closed-form kinematics, so neighbouring scenes have neighbouring
targets.  `plain` does it one way; `multimodal` draws grasp yaw, meeting point and arm timing independent of the scene.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.robot import Vector
from edgewam.robot_bridge.robots import aloha_kinematics as kinematics
from edgewam.robot_bridge.robots import aloha_scene as scene

Style = Literal["plain", "multimodal"]
MOTION_TICKS, HOLD_TICKS = 240, 40  # the hold teaches a policy to stay
NUM_TICKS = MOTION_TICKS + HOLD_TICKS

_PICK_PITCH = np.pi / 3
_OPEN, _CLOSED = 1.0, 0.0


@dataclass(frozen=True)
class Choices:
    """What a demonstrator decides: meeting point (m), roll of the right hand at the grasp (rad), and four ticks."""

    meet: Vector
    grasp_roll: float
    grasp: int  # right fingers start to close
    offer: int  # right hand has brought the cube to the meeting point
    left_start: int  # left arm leaves its start pose
    take: int  # left fingers start to close


@dataclass(frozen=True)
class _Waypoint:
    tick: int
    point: Vector
    pitch: float
    roll: float
    gripper: float


def choose(rng: np.random.Generator, style: Style) -> Choices:
    """Draw the free choices of one demonstration; EdgewamError for an unknown style."""
    if style not in get_args(Style):
        raise EdgewamError(f"Unknown expert style '{style}'. Available: {', '.join(get_args(Style))}.")
    meet = np.array([0.0, 0.5, 0.25])
    if style == "plain":
        return Choices(meet + rng.normal(0.0, 0.005, 3).clip(-0.01, 0.01), 0.0, grasp=70, offer=140, left_start=60, take=158)
    grasp = int(rng.integers(56, 71))
    offer = grasp + int(rng.integers(70, 81))
    return Choices(
        meet=meet + rng.uniform((-0.05, -0.05, -0.04), (0.05, 0.05, 0.04)),
        grasp_roll=float(rng.choice((-0.35, 0.0, 0.35)) + rng.normal(0.0, 0.03)),
        grasp=grasp,
        offer=offer,
        left_start=int(rng.choice((0, grasp))),  # at once, or when the cube is in hand
        take=offer + 18,
    )


def plan(cube_pose: Vector, rng: np.random.Generator, style: Style = "plain") -> npt.NDArray[np.float32]:
    """Joint targets [280, 14] for a cube pose [7] at rest or about to drop (x, y in metres are used)."""
    return plan_choices(cube_pose, choose(rng, style))


def plan_choices(cube_pose: Vector, choices: Choices) -> npt.NDArray[np.float32]:
    """Joint targets [280, 14] of explicit choices."""
    c = choices
    cube = np.array([cube_pose[0], cube_pose[1], 0.026])  # a little above its centre: the finger tips clear the table
    up, aside = np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0])
    take_at = c.meet - 0.02 * aside  # the left fingers hold the cube's near half, clear of the right ones
    released = c.take + 28
    right = [
        _Waypoint(0, *_start("right")),
        _Waypoint(c.grasp - 26, cube + 0.08 * up, _PICK_PITCH, c.grasp_roll, _OPEN),
        _Waypoint(c.grasp - 6, cube, _PICK_PITCH, c.grasp_roll, _OPEN),
        _Waypoint(c.grasp, cube, _PICK_PITCH, c.grasp_roll, _OPEN),
        _Waypoint(c.grasp + 18, cube, _PICK_PITCH, c.grasp_roll, _CLOSED),
        _Waypoint(c.grasp + 36, cube + 0.08 * up, _PICK_PITCH, c.grasp_roll, _CLOSED),
        _Waypoint(c.offer, c.meet, _PICK_PITCH, 0.0, _CLOSED),
        _Waypoint(released - 14, c.meet, _PICK_PITCH, 0.0, _CLOSED),
        _Waypoint(released, c.meet, _PICK_PITCH, 0.0, _OPEN),
        _Waypoint(released + 40, c.meet + 0.12 * aside + 0.04 * up, _PICK_PITCH, 0.0, _OPEN),
    ]
    left = [
        _Waypoint(0, *_start("left")),
        _Waypoint(c.left_start, *_start("left")),
        _Waypoint(c.take - 24, take_at - 0.1 * aside, 0.0, np.pi / 2, _OPEN),
        _Waypoint(c.take - 6, take_at, 0.0, np.pi / 2, _OPEN),
        _Waypoint(c.take, take_at, 0.0, np.pi / 2, _OPEN),
        _Waypoint(c.take + 14, take_at, 0.0, np.pi / 2, _CLOSED),
    ]
    return np.concatenate([_path("left", left), _path("right", right)], axis=1).astype(np.float32)


def careful_ticks(choices: Choices) -> npt.NDArray[np.bool_]:
    """Ticks [280] of the grasp, the lift and all that follows the arrival at the meeting point: no room for large errors."""
    tick = np.arange(NUM_TICKS)
    at_grasp = (tick >= choices.grasp - 26) & (tick < choices.grasp + 36)
    return at_grasp | (tick >= choices.offer - 16)


def _start(side: str) -> tuple[Vector, float, float, float]:
    state = scene.to_joints(scene.START_QPOS)
    first = 0 if side == "left" else 7
    point, pitch, roll = kinematics.forward(side, state[None, first : first + 6])
    return point[0], float(pitch[0]), float(roll[0]), float(state[first + 6])


def _path(side: str, waypoints: list[_Waypoint]) -> Vector:
    """Minimum-jerk path through the waypoints as joints and gripper [280, 7]; the last one is held."""
    tick = np.arange(1, NUM_TICKS + 1)  # the target of a tick is where the arm shall be at its end
    rows = np.array([[*w.point, w.pitch, w.roll, w.gripper] for w in waypoints])
    path = np.repeat(rows[-1:], NUM_TICKS, axis=0)
    for i, (start, end) in enumerate(itertools.pairwise(waypoints)):
        inside = (tick > start.tick) & (tick <= end.tick)
        s = (tick[inside] - start.tick) / max(end.tick - start.tick, 1)
        blend = s**3 * (10 - 15 * s + 6 * s**2)
        path[inside] = rows[i] + blend[:, None] * (rows[i + 1] - rows[i])
    joints = kinematics.inverse(side, path[:, :3], path[:, 3], path[:, 4])
    return np.concatenate([joints, path[:, 5:]], axis=1)

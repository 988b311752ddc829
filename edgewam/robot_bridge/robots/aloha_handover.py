"""A scripted expert that hands a cube over: from a cube position to 280 joint targets.

The right hand picks the cube and offers it, the left hand takes it, the right hand lets go and leaves, both hold still.
Paths are minimum-jerk in grasp-point space through closed-form kinematics, so neighbouring scenes have neighbouring
targets.  `plain` does it one way; `multimodal` draws grasp yaw, meeting point and arm timing independent of the scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewam.robot_bridge.robot import Vector
from edgewam.robot_bridge.robots.aloha_paths import CLOSED, OPEN, Waypoint, joint_targets, start_pose
from edgewam.robot_bridge.robots.aloha_task import Plan

STYLES = ("plain", "multimodal")
MOTION_TICKS, HOLD_TICKS = 240, 40  # the hold teaches a policy to stay
NUM_TICKS = MOTION_TICKS + HOLD_TICKS

STROKE = 42  # ticks from a hover until the fingers close
CAREFUL = 0.35  # share of the execution error left where the work is delicate
_PITCH = np.pi / 3


@dataclass(frozen=True)
class Choices:
    """What a demonstrator decides: meeting point (m), roll and pitch of the right hand at the grasp (rad), and four ticks."""

    meet: Vector
    grasp_roll: float
    grasp: int  # right fingers start to close
    offer: int  # right hand has brought the cube to the meeting point
    left_start: int  # left arm leaves its start pose
    take: int  # left fingers start to close
    grasp_pitch: float = _PITCH
    hover: Vector | None = None  # metres: the right hand comes here first, then goes for the cube in one stroke


def choose(rng: np.random.Generator, style: str) -> Choices:
    """Draw the free choices of one demonstration, `plain` or `multimodal`."""
    assert style in STYLES, style
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


def plan(cube_pose: Vector, choices: Choices, careful: float = CAREFUL, settle: int = 16) -> Plan:
    """280 ticks for a cube pose [7] at rest or about to drop (x, y in metres are used).

    careful: share of the execution error left where the work is delicate.  settle: so many ticks before the arrival at the
    meeting point it begins to be.
    """
    return Plan(targets(cube_pose, choices), np.where(careful_ticks(choices, settle), careful, 1.0))


def targets(cube_pose: Vector, choices: Choices) -> npt.NDArray[np.float32]:
    """Joint targets [280, 14] of explicit choices."""
    c = choices
    cube = np.array([cube_pose[0], cube_pose[1], 0.026])  # a little above its centre: the finger tips clear the table
    up, aside = np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0])
    take_at = c.meet - 0.02 * aside  # the left fingers hold the cube's near half, clear of the right ones
    released = c.take + 28
    before = [Waypoint(c.grasp - 26, cube + 0.08 * up, c.grasp_pitch, c.grasp_roll, OPEN)]
    if c.hover is not None:  # most of the roll comes with the longer part of the way, else the wrist is too fast
        hover = Waypoint(c.grasp - STROKE, c.hover, c.grasp_pitch, 0.0, OPEN)
        before = [hover, Waypoint(c.grasp - 22, cube + 0.07 * up, c.grasp_pitch, 0.7 * c.grasp_roll, OPEN)]
    right = [
        Waypoint(0, *start_pose("right")),
        *before,
        Waypoint(c.grasp - 6, cube, c.grasp_pitch, c.grasp_roll, OPEN),
        Waypoint(c.grasp, cube, c.grasp_pitch, c.grasp_roll, OPEN),
        Waypoint(c.grasp + 18, cube, c.grasp_pitch, c.grasp_roll, CLOSED),
        Waypoint(c.grasp + 36, cube + 0.08 * up, c.grasp_pitch, c.grasp_roll, CLOSED),
        Waypoint(c.offer, c.meet, _PITCH, 0.0, CLOSED),
        Waypoint(released - 14, c.meet, _PITCH, 0.0, CLOSED),
        Waypoint(released, c.meet, _PITCH, 0.0, OPEN),
        Waypoint(released + 40, c.meet + 0.12 * aside + 0.04 * up, _PITCH, 0.0, OPEN),
    ]
    left = [
        Waypoint(0, *start_pose("left")),
        Waypoint(c.left_start, *start_pose("left")),
        Waypoint(c.take - 24, take_at - 0.1 * aside, 0.0, np.pi / 2, OPEN),
        Waypoint(c.take - 6, take_at, 0.0, np.pi / 2, OPEN),
        Waypoint(c.take, take_at, 0.0, np.pi / 2, OPEN),
        Waypoint(c.take + 14, take_at, 0.0, np.pi / 2, CLOSED),
    ]
    return joint_targets(left, right, NUM_TICKS)


def careful_ticks(choices: Choices, settle: int = 16) -> npt.NDArray[np.bool_]:
    """Ticks [280] of the grasp, the lift and all that follows the arrival at the meeting point: no room for large errors."""
    tick = np.arange(NUM_TICKS)
    at_grasp = (tick >= choices.grasp - 26) & (tick < choices.grasp + 36)
    return at_grasp | (tick >= choices.offer - settle)

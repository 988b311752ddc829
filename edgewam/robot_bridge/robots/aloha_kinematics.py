"""Closed-form kinematics of a ViperX arm with the forearm roll locked at 0: the arm then lives in one vertical plane.

Five joints place the grasp point and set the gripper's pitch and roll; its yaw is the waist's.  The wrist never comes
near its singularity, so joint targets are smooth functions of the grasp point.  Vectorised over a path.
"""

from __future__ import annotations

import numpy as np

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.robot import Vector

# metres, from the gym-aloha XML; the plane's axes are x outward and z up from the arm's base
BASES = {"left": (-0.469, 0.5, 0.0), "right": (0.469, 0.5, 3.1416)}  # x, y, yaw in the world
_SHOULDER_Z = 0.12705
_ELBOW = (0.05955, 0.3)
_UPPER, _FORE = float(np.hypot(*_ELBOW)), 0.3
_ELBOW_ANGLE = float(np.arctan2(-_ELBOW[1], _ELBOW[0]))
_GRASP = 0.069744 + 0.135  # wrist to grasp point, 19 mm inside the finger tips


def inverse(side: str, point: Vector, pitch: Vector, roll: Vector) -> Vector:
    """Arm joints [T, 6] that bring the grasp point to `point` [T, 3] (world, m); pitch, roll [T] in rad, pitch down > 0.

    Raises:
        EdgewamError: a point out of reach.
    """
    x, y, yaw = BASES[side]
    dx, dy = point[:, 0] - x, point[:, 1] - y
    outward, sideways = dx * np.cos(yaw) + dy * np.sin(yaw), dy * np.cos(yaw) - dx * np.sin(yaw)
    wrist_x = np.hypot(outward, sideways) - _GRASP * np.cos(pitch)
    wrist_z = point[:, 2] - _SHOULDER_Z + _GRASP * np.sin(pitch)
    reach = np.hypot(wrist_x, wrist_z)
    if (reach >= _UPPER + _FORE).any():
        raise EdgewamError(f"The {side} arm cannot reach {point[np.argmax(reach)].round(3).tolist()} m.")
    # angles below count downwards, as the joints do; the elbow stays up
    opening = np.arccos((_UPPER**2 + reach**2 - _FORE**2) / (2 * _UPPER * reach))
    upper = np.arctan2(-wrist_z, wrist_x) - opening
    fore = np.arctan2(-(wrist_z + _UPPER * np.sin(upper)), wrist_x - _UPPER * np.cos(upper))
    shoulder = upper - _ELBOW_ANGLE
    return np.stack([np.arctan2(sideways, outward), shoulder, fore - shoulder, 0 * roll, pitch - fore, roll], -1)


def forward(side: str, joints: Vector) -> tuple[Vector, Vector, Vector]:
    """Grasp point [T, 3] (world, m), pitch [T] and roll [T] of arm joints [T, 6] whose forearm roll is 0."""
    waist, shoulder, elbow, forearm_roll, wrist, roll = joints.T
    assert not forearm_roll.any(), "the closed form holds for a locked forearm only"
    pitch = shoulder + elbow + wrist
    upper, fore = shoulder + _ELBOW_ANGLE, shoulder + elbow
    out = _UPPER * np.cos(upper) + _FORE * np.cos(fore) + _GRASP * np.cos(pitch)
    up = _SHOULDER_Z - _UPPER * np.sin(upper) - _FORE * np.sin(fore) - _GRASP * np.sin(pitch)
    x, y, yaw = BASES[side]
    return np.stack([x + out * np.cos(yaw + waist), y + out * np.sin(yaw + waist), up], -1), pitch, roll


def heading(side: str, point: Vector) -> float:
    """World yaw in rad of the vertical plane in which the arm reaches a point [3] (m), outward from its base."""
    x, y, _ = BASES[side]
    return float(np.arctan2(point[1] - y, point[0] - x))


def hand_axes(yaw: float, pitch: float, roll: float) -> Vector:
    """World axes [3, 3] of a gripper, as columns: forward, the way the fingers close, and their normal.  Angles in rad."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    forward, side, normal = np.array([cy * cp, sy * cp, -sp]), np.array([-sy, cy, 0.0]), np.array([cy * sp, sy * sp, cp])
    across = np.cos(roll) * side + np.sin(roll) * normal
    return np.stack([forward, across, np.cos(roll) * normal - np.sin(roll) * side], -1)


def roll_across(yaw: float, axis_yaw: float, pitch: float) -> float:
    """Roll in (-pi/2, pi/2) at which the fingers of a hand of that yaw close across a level rod of world yaw `axis_yaw`."""
    turn = (axis_yaw - yaw + np.pi / 2) % np.pi - np.pi / 2
    return float(np.arctan2(-np.sin(turn), np.cos(turn) * np.sin(pitch)))

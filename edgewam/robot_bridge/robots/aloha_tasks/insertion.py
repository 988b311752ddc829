"""Insertion of gym-aloha: the left hand lifts a socket, the right hand a peg, and the peg goes in until it touches the pin.

Scene and reward are the package's, same scenes for the same seeds.  The expert's hands close across peg and socket, and
pitch and roll where they meet so that both lie level along the world's x axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewam.robot_bridge.robot import Vector
from edgewam.robot_bridge.robots import aloha_kinematics as kinematics
from edgewam.robot_bridge.robots import aloha_scene as scene
from edgewam.robot_bridge.robots.aloha_paths import CLOSED, OPEN, Waypoint, joint_targets, start_pose
from edgewam.robot_bridge.robots.aloha_task import Plan, Task
from edgewam.robot_bridge.robots.mujoco_gl import import_mujoco

XML = "bimanual_viperx_insertion.xml"
STRICT_HEIGHT_M = 0.1
STRICT_GAP_M = 0.001  # between peg and pin: as good as touching
_TOUCHING_M, _INSIDE_M = 0.1, 0.009  # from the pin's middle to the peg's: along the socket at contact, and across it at most
STYLES = ("plain", "multimodal")
NUM_TICKS = 280
_PEG, _SOCKET = slice(0, 7), slice(7, 14)
_HALF_LENGTH, _DEPTH = 0.06, 0.02  # metres: of peg and socket alike; the pin begins that far inside the socket
_PITCH = 1.3  # rad, steep: fingers that are turned to a thing far aside stay nearly level
_GRIP_OUT = 0.025  # metres from a thing's middle to where its hand grips it, away from the other hand
_GRIP_Z = {"left": 0.026, "right": 0.028}  # metres, grasp point above the table: the finger tips clear it
_REST_Z = {"left": 0.02, "right": 0.006}  # the middle of what lies there; the peg's is at 0.01 but hangs 4 mm lower once lifted
_CAREFUL = 0.1  # share of the execution error left at grasp and insertion
_GAP, _PRESS = 0.03, 0.012  # metres between peg and socket when aligned, and pushed beyond the first touch of the pin
_RISE = 0.008  # metres that a hand rises on its way when it pushes: the shoulder lags less than the elbow


def load_model() -> Any:
    """The package's scene, as it is (nq 30, nv 28, nu 16)."""
    return import_mujoco().MjModel.from_xml_path(scene.xml_file(XML))


def sample_poses(seed: int) -> Vector:
    """Poses [14] of peg and socket of a seed: the very draw of gym-aloha, so that seeds mean the same scene."""
    rng = np.random.RandomState(seed)
    peg = rng.uniform((0.1, 0.4, 0.05), (0.2, 0.6, 0.05))
    socket = rng.uniform((-0.2, 0.4, 0.05), (-0.1, 0.6, 0.05))
    level = [1.0, 0.0, 0.0, 0.0]
    return np.concatenate([peg, level, socket, level])


class InsertionJudge:
    """The package's reward; the pairs and their order are those that it looks at."""

    def __init__(self, model: Any) -> None:
        def geom(name: str) -> int:
            return int(model.geom(name).id)

        self._peg, self._pin, self._table = geom("red_peg"), geom("pin"), geom("table")
        self._walls = [geom(f"socket-{i}") for i in (1, 2, 3, 4)]
        self._left_finger = geom("vx300s_left/10_left_gripper_finger")
        self._right_finger = geom("vx300s_right/10_right_gripper_finger")

    def __call__(self, data: Any) -> tuple[int, bool]:
        """(reward 0..4, whether the peg is in down to the pin and both are well above the table)."""
        pairs = scene.touching(data)
        peg_held = (self._peg, self._right_finger) in pairs
        socket_held = any((wall, self._left_finger) in pairs for wall in self._walls)
        on_table = (self._peg, self._table) in pairs or any((wall, self._table) in pairs for wall in self._walls)
        reward = 0
        if peg_held and socket_held:
            reward = 1 if on_table else 2
        if not on_table and any((self._peg, wall) in pairs for wall in self._walls):
            reward = 3
        if (self._peg, self._pin) in pairs:
            reward = 4
        # geometry, for contacts flicker from tick to tick; and nothing but hands keeps two things in the air
        apart = data.geom_xmat[self._pin].reshape(3, 3).T @ (data.geom_xpos[self._peg] - data.geom_xpos[self._pin])
        is_in = abs(apart[0]) < _TOUCHING_M + STRICT_GAP_M and max(abs(apart[1]), abs(apart[2])) < _INSIDE_M
        is_high = min(data.geom_xpos[self._peg][2], data.geom_xpos[self._pin][2]) > STRICT_HEIGHT_M
        return reward, bool(is_in and is_high)


@dataclass(frozen=True)
class Choices:
    """What a demonstrator decides: where the socket's mouth is at the meeting (m), when each hand grasps, and who pushes."""

    mouth: Vector
    left_grasp: int
    right_grasp: int
    aligned: int  # both things are level and in line
    pushed_by_right: float  # share of the way, the left hand does the rest


def choose(rng: np.random.Generator, style: str) -> Choices:
    """Draw the free choices of one demonstration."""
    mouth = np.array([0.0, 0.5, 0.25])
    if style == "plain":
        return Choices(mouth + rng.normal(0.0, 0.005, 3).clip(-0.01, 0.01), 58, 58, 150, 1.0)
    first, second = (int(tick) for tick in (rng.integers(54, 58), rng.integers(60, 67)))
    left, right = (first, second) if rng.random() < 0.5 else (second, first)
    share = float(rng.choice((0.75, 1.0)))
    return Choices(mouth + rng.uniform((-0.03, -0.04, -0.04), (0.03, 0.04, 0.04)), left, right, second + 90, share)


def _expert(poses: Vector, rng: np.random.Generator, style: str) -> Plan:
    return plan(poses, choose(rng, style))


def plan(poses: Vector, c: Choices) -> Plan:
    """280 ticks for poses [14] of peg and socket at rest or about to drop (x, y in metres are used)."""
    way = np.array([_GAP + _DEPTH + _PRESS, 0.0, 0.0])
    right_share, left_share = c.pushed_by_right, 1.0 - c.pushed_by_right
    peg = c.mouth + np.array([_HALF_LENGTH + _GAP, 0.0, -0.5 * _RISE * right_share])
    socket = c.mouth + np.array([-_HALF_LENGTH, 0.0, -0.5 * _RISE * left_share])
    right = _side("right", poses[_PEG], c.right_grasp, c.aligned, peg, peg - right_share * way)
    left = _side("left", poses[_SOCKET], c.left_grasp, c.aligned, socket, socket + left_share * way)
    tick = np.arange(NUM_TICKS)
    share = np.ones(NUM_TICKS)
    for grasp in (c.left_grasp, c.right_grasp):
        share[(tick >= grasp - 26) & (tick < grasp + 36)] = _CAREFUL
    share[tick >= c.aligned - 50] = _CAREFUL
    return Plan(joint_targets(left, right, NUM_TICKS), share)


def _side(side: str, pose: Vector, grasp: int, aligned: int, middle: Vector, pushed: Vector) -> list[Waypoint]:
    """One hand's way: pick its thing, bring the thing's middle to `middle` by the tick `aligned`, then to `pushed`."""
    out = -1.0 if side == "left" else 1.0
    grip = np.array([pose[0] + out * _GRIP_OUT, pose[1], _GRIP_Z[side]])
    rest = np.array([pose[0], pose[1], _REST_Z[side]])
    yaw = kinematics.heading(side, grip)
    roll = kinematics.roll_across(yaw, 0.0, _PITCH)
    hand = kinematics.hand_axes(yaw, _PITCH, roll)
    held_axis, held_middle = hand.T @ [1.0, 0.0, 0.0], hand.T @ (rest - grip)
    above = grip + np.array([0.0, 0.0, 0.08])
    carry = []
    for target in (middle, pushed):
        point = target + np.array([out * _GRIP_OUT, 0.0, 0.0])
        yaw_there = kinematics.heading(side, point)
        pitch_there = float(np.arccos(np.clip(abs(held_axis[0]) / abs(np.cos(yaw_there)), -1.0, 1.0)))
        roll_there = kinematics.roll_across(yaw_there, 0.0, pitch_there)
        carry.append((target - kinematics.hand_axes(yaw_there, pitch_there, roll_there) @ held_middle, pitch_there, roll_there))
    return [
        Waypoint(0, *start_pose(side)),
        Waypoint(grasp - 24, above, _PITCH, roll, OPEN),
        Waypoint(grasp - 6, grip, _PITCH, roll, OPEN),
        Waypoint(grasp, grip, _PITCH, roll, OPEN),
        Waypoint(grasp + 18, grip, _PITCH, roll, CLOSED),
        Waypoint(grasp + 34, above, _PITCH, roll, CLOSED),
        Waypoint(aligned, *carry[0], CLOSED),
        Waypoint(aligned + 10, *carry[0], CLOSED),
        Waypoint(aligned + 60, *carry[1], CLOSED),
    ]


TASK = Task(
    name="insertion",
    prompt="pick up the peg and the socket and push the peg into the socket",
    things=("peg", "socket"),
    load_model=load_model,
    sample=sample_poses,
    judge=InsertionJudge,
    expert=_expert,
    styles=STYLES,
)

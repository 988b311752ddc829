"""What every task on ALOHA shares of the gym-aloha package: its XML files, its joint layout, its start pose and cameras.

Only the package's asset files are used: its Python code would register gym environments and import dm_control.
Joints are the 14 of the policy: 6 left arm angles in rad, left gripper 0..1, then the same for the right arm.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from edgewam.core.errors import MissingExtraError
from edgewam.robot_bridge.robot import Vector

CONTROL_HZ = 50.0
SUBSTEPS = 10  # of 2 ms, the XML's own time step
CAMERAS = {"cam_high": "top", "cam_left_wrist": "left_wrist", "cam_right_wrist": "right_wrist"}  # ours -> the XML's
CAMERA_SHAPES = {"cam_high": (128, 160, 3), "cam_left_wrist": (64, 80, 3), "cam_right_wrist": (64, 80, 3)}

ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
JOINT_NAMES = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in ARM_JOINTS)
GRIPPERS = (6, 13)
ARMS = tuple(i for i in range(14) if i not in GRIPPERS)
_ARM_LOWER = (-3.14158, -1.85005, -1.76278, -3.14158, -1.8675, -3.14158, 0.0)
_ARM_UPPER = (3.14158, 1.25664, 1.6057, 3.14158, 2.23402, 3.14158, 1.0)
LOWER = np.array(_ARM_LOWER * 2)
UPPER = np.array(_ARM_UPPER * 2)

# a gripper of 0..1 stands for the left finger's slide in metres; the right finger mirrors it
FINGER_CLOSED_M, FINGER_OPEN_M = 0.01844, 0.05800
_ARM_START = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.02239, -0.02239)
START_QPOS = np.array(_ARM_START * 2)


def assets_dir() -> Path:
    """Folder of the gym-aloha XML and meshes, found without importing the package.

    Raises:
        MissingExtraError: with the two pip commands of the lean install.
    """
    spec = importlib.util.find_spec("gym_aloha")
    folder = Path(next(iter(spec.submodule_search_locations))) / "assets" if spec and spec.submodule_search_locations else None
    if folder is None or not (folder / "bimanual_viperx_transfer_cube.xml").is_file():
        raise MissingExtraError(
            "The simulator needs the scene files of gym-aloha, which are not installed. Install them with: "
            "pip install 'edgewam[sim]' && pip install --no-deps gym-aloha==0.1.5"
        )
    return folder


def xml_file(name: str) -> str:
    """Path of one of the package's scenes, such as `bimanual_viperx_transfer_cube.xml`."""
    return str(assets_dir() / name)


def to_ctrl(command: Vector) -> Vector:
    """Command [14] -> MuJoCo controls [16], two mirrored fingers for each gripper."""
    left, right = (FINGER_CLOSED_M + command[i] * (FINGER_OPEN_M - FINGER_CLOSED_M) for i in GRIPPERS)
    return np.concatenate([command[:6], [left, -left], command[7:13], [right, -right]])


def to_joints(qpos: Vector) -> Vector:
    """MuJoCo positions [>= 16] -> joint state [14]; a gripper reads its left finger."""
    left, right = ((qpos[i] - FINGER_CLOSED_M) / (FINGER_OPEN_M - FINGER_CLOSED_M) for i in (6, 14))
    return np.concatenate([qpos[:6], [left], qpos[8:14], [right]])


def touching(data: Any) -> set[tuple[int, int]]:
    """Contact pairs (geom1, geom2) of a mujoco.MjData, in the order in which the gym-aloha rewards look at them."""
    return set(zip(data.contact.geom1.tolist(), data.contact.geom2.tolist(), strict=True))

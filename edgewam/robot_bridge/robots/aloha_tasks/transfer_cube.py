"""TransferCube of gym-aloha: the right hand picks a cube and hands it over to the left one.  Same scenes for the same seeds."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgewam.robot_bridge.robot import Vector
from edgewam.robot_bridge.robots import aloha_handover as handover
from edgewam.robot_bridge.robots import aloha_scene as scene
from edgewam.robot_bridge.robots.aloha_task import Plan, Task
from edgewam.robot_bridge.robots.mujoco_gl import import_mujoco

XML = "bimanual_viperx_transfer_cube.xml"
STRICT_HEIGHT_M = 0.1
_LOW, _HIGH = (0.0, 0.4, 0.05), (0.2, 0.6, 0.05)  # metres; the cube drops the last 3 cm


def load_model() -> Any:
    """The package's scene, as it is (nq 23, nv 22, nu 16)."""
    return import_mujoco().MjModel.from_xml_path(scene.xml_file(XML))


def sample_cube(seed: int) -> Vector:
    """Cube pose [x, y, z, quaternion wxyz] of a seed: the very draw of gym-aloha, so that seeds mean the same scene."""
    position = np.random.RandomState(seed).uniform(_LOW, _HIGH)
    return np.concatenate([position, [1.0, 0.0, 0.0, 0.0]])


class CubeJudge:
    """Which things touch a cube; the pairs and their order are those that the gym-aloha reward looks at."""

    def __init__(self, model: Any, cube: str = "red_box") -> None:
        """cube: name of its geom, whose body is a free one."""

        def geom(name: str) -> int:
            return int(model.geom(name).id)

        self._cube, self._table = geom(cube), geom("table")
        self._height = int(model.jnt_qposadr[model.body_jntadr[model.geom_bodyid[self._cube]]]) + 2
        self._left_finger = geom("vx300s_left/10_left_gripper_finger")
        self._right_finger = geom("vx300s_right/10_right_gripper_finger")
        self._right_hand = {self._right_finger, geom("vx300s_right/10_left_gripper_finger")}

    def __call__(self, data: Any) -> tuple[int, bool]:
        """(reward 0..4, whether the left finger alone holds the cube well above the table)."""
        return self.judge(data, scene.touching(data))

    def judge(self, data: Any, pairs: set[tuple[int, int]]) -> tuple[int, bool]:
        """The same for contact pairs that are known already."""
        touched = {second for first, second in pairs if first == self._cube}
        on_table = (self._cube, self._table) in pairs
        reward = 0
        if self._right_finger in touched:
            reward = 1 if on_table else 2
        if self._left_finger in touched:
            reward = 3 if on_table else 4
        # stricter than the reward, so either order of a pair counts as touching
        either = touched | {first for first, second in pairs if second == self._cube}
        holds = self._left_finger in touched and not either & {*self._right_hand, self._table}
        return reward, bool(holds and data.qpos[self._height] > STRICT_HEIGHT_M)


def _expert(poses: Vector, rng: np.random.Generator, style: str) -> Plan:
    return handover.plan(poses, handover.choose(rng, style))


TASK = Task(
    name="transfer_cube",
    prompt="pick up the cube with the right hand and hand it over to the left hand",
    things=("cube",),
    load_model=load_model,
    sample=sample_cube,
    judge=CubeJudge,
    expert=_expert,
    styles=handover.STYLES,
)

"""TransferCube in a world that varies: where the cube lies and how it is turned, its mass and friction, colours, light, cameras.

A block of another colour lies about and means nothing.  Reward and strict success are TransferCube's.  The expert turns its
hand to the cube's faces; which pair it takes, where the hands meet and when are its own free choice, whatever the scene.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.robot_bridge.robot import Vector
from edgewam.robot_bridge.robots import aloha_handover as handover
from edgewam.robot_bridge.robots import aloha_kinematics as kinematics
from edgewam.robot_bridge.robots import aloha_scene as scene
from edgewam.robot_bridge.robots.aloha_task import Plan, Task
from edgewam.robot_bridge.robots.aloha_tasks import transfer_cube
from edgewam.robot_bridge.robots.mujoco_gl import import_mujoco

LOW, HIGH = (0.0, 0.4), (0.2, 0.6)  # metres, x and y of the cube: TransferCube's
BLOCK_LOW, BLOCK_HIGH = (-0.2, 0.34), (0.25, 0.66)
CLEAR_M = 0.13  # between the middles of cube and block: room for an open hand
_Z = 0.0205  # half a millimetre above the table
_PITCH = 1.2  # steeper than for a cube that lies straight, so that a turned hand's fingers stay level
_MAX_ROLL = 1.2  # rad; further, one finger comes too near the table
_LIGHT = ("light_pos", "light_dir", "light_diffuse", "light_ambient")


def load_model() -> Any:
    """TransferCube's scene with a block, and cameras whose direction is their own (nq 30, nv 28, nu 16)."""
    mujoco = import_mujoco()
    spec = mujoco.MjSpec.from_file(scene.xml_file(transfer_cube.XML))
    spec.delete(spec.keys[0])  # a pose of another number of joints
    body = spec.worldbody.add_body(name="block", mass=0.05, inertia=[0.002] * 3, explicitinertial=True)  # as the cube's
    body.add_freejoint()
    body.add_geom(name="block", type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.02] * 3, condim=4)
    spec.geom("red_box").priority = 1  # else the larger friction of two surfaces counts, which is the fingers'
    nominal = transfer_cube.load_model()
    data = mujoco.MjData(nominal)
    mujoco.mj_forward(nominal, data)
    for name in scene.CAMERAS.values():
        camera = nominal.camera(name)
        body_axes = data.xmat[camera.bodyid[0]].reshape(3, 3)
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, (body_axes.T @ data.cam_xmat[camera.id].reshape(3, 3)).ravel())
        spec.camera(name).mode = mujoco.mjtCamLight.mjCAMLIGHT_FIXED
        spec.camera(name).quat = quaternion
    return spec.compile()


def sample_poses(seed: int) -> Vector:
    """Poses [14] of cube and block of a seed, at rest."""
    rng = np.random.default_rng([seed, 2])
    cube, yaw = rng.uniform(LOW, HIGH), rng.uniform(-np.pi, np.pi)
    block = rng.uniform(BLOCK_LOW, BLOCK_HIGH)
    while np.hypot(*(block - cube)) < CLEAR_M:
        block = rng.uniform(BLOCK_LOW, BLOCK_HIGH)
    return np.concatenate([_flat(cube, _Z, yaw), _flat(block, _Z, rng.uniform(-np.pi, np.pi))])


def _flat(position: Vector, z: float, yaw: float) -> Vector:
    return np.array([*position, z, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])


class Variation:
    """What a seed does to the model's properties."""

    def __init__(self, model: Any) -> None:
        self._cube, self._table, self._block = (int(model.geom(name).id) for name in ("red_box", "table", "block"))
        self._cube_body = int(model.body("box").id)
        self._cameras = [int(model.camera(name).id) for name in scene.CAMERAS.values()]
        names = ("geom_rgba", "geom_size", "geom_friction", "body_mass", "body_inertia", "cam_pos", "cam_quat")
        self._nominal = {name: getattr(model, name).copy() for name in (*names, *_LIGHT)}

    def __call__(self, seed: int) -> Mapping[str, npt.NDArray[Any]]:
        """Whole new values of the fields of a mujoco.MjModel."""
        rng = np.random.default_rng([seed, 3])
        new = {name: value.copy() for name, value in self._nominal.items()}
        new["geom_friction"][self._cube] *= rng.uniform(0.7, 1.3)
        heavier = np.exp(rng.uniform(-np.log(2.0), np.log(2.0)))
        new["body_mass"][self._cube_body] *= heavier
        new["body_inertia"][self._cube_body] *= heavier
        new["geom_size"][self._block] = rng.uniform(0.012, 0.02, 3)
        # a cube is some red, a block never is: the words tell which is which
        new["geom_rgba"][self._cube, :3] = colorsys.hsv_to_rgb(rng.uniform(-0.04, 0.04) % 1.0, *rng.uniform((0.8, 0.7), 1.0))
        new["geom_rgba"][self._block, :3] = colorsys.hsv_to_rgb(rng.uniform(0.14, 0.76), *rng.uniform(0.4, 1.0, 2))
        new["geom_rgba"][self._table, :3] = rng.uniform(0.15, 0.3) + rng.uniform(-0.04, 0.04, 3)
        new["light_pos"] += rng.uniform(-0.2, 0.2, new["light_pos"].shape)
        new["light_dir"] += rng.uniform(-0.25, 0.25, new["light_dir"].shape)
        new["light_dir"] /= np.linalg.norm(new["light_dir"], axis=1, keepdims=True)
        new["light_diffuse"] *= rng.uniform(0.7, 1.1, (len(new["light_diffuse"]), 1)) * rng.uniform(0.9, 1.1, 3)
        new["light_ambient"] += rng.uniform(0.0, 0.05)
        for camera, name in zip(self._cameras, scene.CAMERAS, strict=True):
            distance, angle = (0.008, 0.01) if name == "cam_high" else (0.003, 0.01)
            new["cam_pos"][camera] += rng.uniform(-distance, distance, 3)
            new["cam_quat"][camera] = _turned(new["cam_quat"][camera], rng.uniform(-angle, angle, 3))
        return new


def _turned(quaternion: Vector, rotation: Vector) -> Vector:
    """A camera's orientation after a small rotation [3] (rad) in its own frame."""
    mujoco = import_mujoco()
    turned = np.array(quaternion)
    mujoco.mju_quatIntegrate(turned, rotation, 1.0)
    return turned


def _expert(poses: Vector, rng: np.random.Generator, style: str) -> Plan:
    choices, takes_other_faces = handover.choose(rng, style), rng.random() < 0.5
    yaw = 2.0 * float(np.arctan2(poses[6], poses[3]))
    hand = kinematics.heading("right", poses[:3])
    rolls = sorted((kinematics.roll_across(hand, yaw + turn, _PITCH) for turn in (0.0, np.pi / 2)), key=abs)
    is_other = style != "plain" and takes_other_faces and abs(rolls[1]) < _MAX_ROLL
    roll = rolls[int(is_other)] + 0.5 * choices.grasp_roll  # a grip that is a little askew turns the cube
    return handover.plan(poses, replace(choices, grasp_roll=roll, grasp_pitch=_PITCH), careful=0.2, settle=40)


TASK = Task(
    name="transfer_cube_random",
    prompt="find the red cube, pick it up and hand it over to the left hand",
    things=("cube",),
    load_model=load_model,
    sample=sample_poses,
    judge=transfer_cube.CubeJudge,
    expert=_expert,
    styles=("multimodal", "plain"),
    variation=Variation,
    drawn_fields=("geom_rgba", "geom_size", "cam_pos", "cam_quat", *_LIGHT),
)

"""TransferCube in a world that varies: where cubes lie and how they are turned, their mass and friction, colours, light, cameras.

There are two red cubes, a near and a far one, and either will do: the one thing a demonstrator has to decide at once, since
between them there is nothing to grasp.  The hand hovers first where it is as far from both areas, so that both ways part within
one action chunk.  A block of another colour lies about and means nothing.  Reward and strict success are TransferCube's, of the
better cube.  The expert turns its hand to the nearer faces of a cube; which cube it takes, where the hands meet and when are its
own free choice, whatever the scene.
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

# metres, x and y of the near cube, of the far cube and of the block
AREAS = (((0.0, 0.35), (0.18, 0.415)), ((0.0, 0.585), (0.18, 0.65)), ((-0.2, 0.34), (0.25, 0.66)))
CELL_M = 0.165  # what 16 pixels of the top camera, one latent cell, show of the table: two cubes in one cell are told apart badly
CLEAR_M = 0.13  # between the middles of any two: room for an open hand
YAWS = (0.3, 0.3, np.pi)  # rad, either way; a cube is five pixels wide, and more was not seen (benchmarks/NOTES.md)
CUBES = ("red_box", "second_red_box")  # geoms
_Z = 0.0205  # half a millimetre above the table
HOVER = np.array([0.2, 0.5, 0.15])  # metres, as far from both and hiding neither: the choice is made there
LATER = 16  # ticks for the way over the hover
_PITCH = 1.2  # steeper than for a cube that lies straight, so that a turned hand's fingers stay level
_LIGHT = ("light_pos", "light_dir", "light_diffuse", "light_ambient")


def load_model() -> Any:
    """TransferCube's scene with a second cube and a block, and cameras whose direction is their own (nq 37, nv 34, nu 16)."""
    mujoco = import_mujoco()
    spec = mujoco.MjSpec.from_file(scene.xml_file(transfer_cube.XML))
    spec.delete(spec.keys[0])  # a pose of another number of joints
    first = spec.geom(CUBES[0])
    first.priority = 1  # else the larger friction of two surfaces counts, which is the fingers'
    for name, geom in (("second_box", CUBES[1]), ("block", "block")):
        body = spec.worldbody.add_body(name=name, mass=0.05, inertia=[0.002] * 3, explicitinertial=True)  # as the first cube's
        body.add_joint(name=f"{geom}_joint", type=mujoco.mjtJoint.mjJNT_FREE, frictionloss=0.01)
        added = body.add_geom(name=geom, type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.02] * 3, condim=4)
        if geom == CUBES[1]:
            added.solref, added.solimp, added.priority = first.solref, first.solimp, first.priority
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
    """Poses [21] of both cubes, the near one first, and of the block of a seed, at rest."""
    rng = np.random.default_rng([seed, 2])
    placed: list[Vector] = []
    for low, high in AREAS:
        spot = rng.uniform(low, high)
        while any(np.hypot(*(spot - other)) < CLEAR_M for other in placed):
            spot = rng.uniform(low, high)
        placed.append(spot)
    return np.concatenate([_flat(spot, _Z, rng.uniform(-yaw, yaw)) for spot, yaw in zip(placed, YAWS, strict=True)])


def _flat(position: Vector, z: float, yaw: float) -> Vector:
    return np.array([*position, z, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])


class Variation:
    """What a seed does to the model's properties."""

    def __init__(self, model: Any) -> None:
        self._table, self._block = (int(model.geom(name).id) for name in ("table", "block"))
        self._cubes = [int(model.geom(name).id) for name in CUBES]
        self._bodies = model.geom_bodyid[self._cubes]
        self._cameras = [int(model.camera(name).id) for name in scene.CAMERAS.values()]
        names = ("geom_rgba", "geom_size", "geom_friction", "body_mass", "body_inertia", "cam_pos", "cam_quat")
        self._nominal = {name: getattr(model, name).copy() for name in (*names, *_LIGHT)}

    def __call__(self, seed: int) -> Mapping[str, npt.NDArray[Any]]:
        """Whole new values of the fields of a mujoco.MjModel."""
        rng = np.random.default_rng([seed, 3])
        new = {name: value.copy() for name, value in self._nominal.items()}
        new["geom_friction"][self._cubes] *= rng.uniform(0.7, 1.3)
        heavier = np.exp(rng.uniform(-np.log(2.0), np.log(2.0)))
        new["body_mass"][self._bodies] *= heavier
        new["body_inertia"][self._bodies] *= heavier
        new["geom_size"][self._block] = rng.uniform(0.012, 0.02, 3)
        # a cube is some red, a block never is: the words tell which is which
        new["geom_rgba"][self._cubes, :3] = colorsys.hsv_to_rgb(rng.uniform(-0.04, 0.04) % 1.0, *rng.uniform((0.8, 0.7), 1.0))
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


class AnyCubeJudge:
    """TransferCube's judgement of the better cube."""

    def __init__(self, model: Any) -> None:
        self._judges = [transfer_cube.CubeJudge(model, cube) for cube in CUBES]

    def __call__(self, data: Any) -> tuple[int, bool]:
        """(reward 0..4, whether the left finger alone holds a cube well above the table)."""
        pairs = scene.touching(data)
        rewards, strict = zip(*(cube.judge(data, pairs) for cube in self._judges), strict=True)
        return max(rewards), any(strict)


def _expert(poses: Vector, rng: np.random.Generator, style: str) -> Plan:
    choices, takes_second = handover.choose(rng, style), rng.random() < 0.5
    if style != "plain" and takes_second:
        poses = poses[7:]
    yaw = 2.0 * float(np.arctan2(poses[6], poses[3]))
    hand = kinematics.heading("right", poses[:3])
    roll = min((kinematics.roll_across(hand, yaw + turn, _PITCH) for turn in (0.0, np.pi / 2)), key=abs)
    roll += 0.5 * choices.grasp_roll  # a grip that is a little askew turns the cube
    ticks = {name: getattr(choices, name) for name in ("grasp", "offer", "take", "left_start")}
    late = {name: tick + LATER for name, tick in ticks.items() if tick}  # a left arm that starts at once still does
    choices = replace(choices, grasp_roll=roll, grasp_pitch=_PITCH, hover=HOVER, **late)
    return handover.plan(poses, choices, careful=0.2, settle=40)


TASK = Task(
    name="transfer_cube_random",
    prompt="pick up one of the red cubes and hand it over to the left hand",
    things=("cube", "second_cube"),
    load_model=load_model,
    sample=sample_poses,
    judge=AnyCubeJudge,
    expert=_expert,
    styles=("multimodal", "plain"),
    variation=Variation,
    drawn_fields=("geom_rgba", "geom_size", "cam_pos", "cam_quat", *_LIGHT),
)

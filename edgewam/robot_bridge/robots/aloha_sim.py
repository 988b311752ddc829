"""Two ViperX arms in MuJoCo at 50 Hz: the gym-aloha scenes and their variations, with own stepping and cameras.

What lies on the table and what counts as success is the option `task` (`aloha_tasks/`).

Lockstep: `step` per action.  Real time: `command` whenever one comes and `advance` once per tick; a command is in force
for `lease_ticks`, then the arms hold where they are.  Physics is the gym environment's, step for step; at a multiple of its 50 Hz
a tick has fewer of the same steps.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import EdgewamError
from edgewam.core.records import Observation
from edgewam.robot_bridge.robot import Images, Renderer, RobotSpec, StepResult, Vector, at_rate
from edgewam.robot_bridge.robots import aloha_scene as scene
from edgewam.robot_bridge.robots.aloha_render import AlohaRenderer, drawn_values
from edgewam.robot_bridge.robots.aloha_task import load_task
from edgewam.robot_bridge.robots.aloha_tasks import transfer_cube
from edgewam.robot_bridge.robots.mujoco_gl import import_mujoco

STRICT_TICKS = 25  # half a second of holding, at 50 Hz
DEFAULT_TASK = "transfer_cube"

SPEC = RobotSpec(
    name="aloha_sim",
    joint_names=scene.JOINT_NAMES,
    lower=scene.LOWER,
    upper=scene.UPPER,
    # the expert's targets reach 3.5 rad/s (right shoulder, multimodal, 200 scenes) and 6.6 gripper strokes/s: 40 % more
    max_velocity=np.array((5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 9.0) * 2),
    # no max_acceleration: executed demonstrations reach 170 rad/s^2 (30 scenes), 250 is full speed within one tick
    control_hz=scene.CONTROL_HZ,
    camera_shapes=scene.CAMERA_SHAPES,
    camera_hz=25.0,
    prompts=(transfer_cube.TASK.prompt,),
    episode_ticks=transfer_cube.TASK.episode_ticks,
)


def describe(task: str) -> RobotSpec:
    """The spec with the prompt and the episode length of a task; PluginError for an unknown one."""
    found = load_task(task)
    return replace(SPEC, prompts=(found.prompt,), episode_ticks=found.episode_ticks)


def make(
    *,
    task: str = DEFAULT_TASK,
    render: bool = True,
    renderer: Renderer | None = None,
    lease_ticks: int | None = None,
    control_hz: float = SPEC.control_hz,
) -> AlohaSim:
    """A simulator at rest, reset to seed 0.

    task: module name in `aloha_tasks`, or a dotted path; PluginError lists what there is.  render: draw the cameras in this
    process, when `observe` first asks.  renderer: share one among simulators of the same task; its owner closes it.
    control_hz: 50, 100 or 250.
    """
    return AlohaSim(task=task, render=render, renderer=renderer, lease_ticks=lease_ticks, control_hz=control_hz)


def make_renderer(task: str = DEFAULT_TASK) -> AlohaRenderer:
    """The cameras alone, for `AlohaSim.physics_state` arrays of the same task, in any process."""
    return AlohaRenderer(load_task(task))


class AlohaSim:
    """`Simulator` over one MuJoCo model; images are taken every `spec.camera_every` ticks and held in between."""

    def __init__(self, *, task: str, render: bool, renderer: Renderer | None, lease_ticks: int | None, control_hz: float) -> None:
        self._mj = import_mujoco()
        self.task, self.spec = load_task(task), at_rate(describe(task), control_hz)
        self._substeps = round(scene.SUBSTEPS * SPEC.control_hz / control_hz)
        if self._substeps < 2 or self._substeps * control_hz != scene.SUBSTEPS * SPEC.control_hz:
            raise EdgewamError(f"aloha_sim runs at 50, 100 or 250 Hz, not at {control_hz:g} Hz: its physics has steps of 2 ms.")
        self._strict_ticks_needed = round(STRICT_TICKS * control_hz / SPEC.control_hz)
        self._model = self.task.load_model()
        self._data = self._mj.MjData(self._model)
        self._judge = self.task.judge(self._model)
        self._variation = self.task.variation(self._model) if self.task.variation else None
        self._render = render or renderer is not None
        self._renderer, self._owns_renderer = renderer, renderer is None
        self._lease_ticks = self.spec.lease_ticks if lease_ticks is None else lease_ticks
        self._images: Images | None = None
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Arms at the start pose, grippers a tenth open, everything else as the seed wants it."""
        if self._variation is not None:
            for field, value in self._variation(seed).items():
                getattr(self._model, field)[:] = value
            self._mj.mj_setConst(self._model, self._data)  # what the compiler derives from masses
        self.reset_to(self.task.sample(seed))

    def reset_to(self, poses: Vector) -> None:
        """Like `reset` with poses of the caller's choice, each [x, y, z, quaternion wxyz] in metres, all in one vector."""
        mujoco, model, data = self._mj, self._model, self._data
        mujoco.mj_resetData(model, data)
        self._forward_without_actuation()  # both passes leave a solver warm start behind, as in the gym environment
        data.qpos[:16] = data.ctrl[:] = scene.START_QPOS
        data.qpos[16:] = poses
        self._forward_without_actuation()
        self._tick, self._command_age, self._strict_ticks = 0, 0, 0
        self._command = self.joints()
        self._take_frame()

    def observe(self) -> Observation:
        """Joint state now; images of the latest camera tick, or none when made with render=False."""
        if self._render and self._images is None:
            if self._renderer is None:
                self._renderer = AlohaRenderer(self.task)
            self._images = self._renderer.render(self._frame_state)
        return Observation(self._images or {}, self.joints().astype(np.float32), self._tick, self._frame_ns)

    def command(self, target: npt.ArrayLike) -> None:
        """Set the joint target [14] and renew the lease; out-of-range values are clipped to the limits."""
        self._command = SPEC.checked(target)
        self._command_age = 0
        self._data.ctrl[:] = scene.to_ctrl(self._command)

    def stop(self) -> None:
        """Hold the arms where they are now; grippers keep their command, else they would drop what they hold."""
        present = self.joints()
        present[list(scene.GRIPPERS)] = self._command[list(scene.GRIPPERS)]
        self.command(present)
        self._command_age = self._lease_ticks + 1  # nothing is left to expire

    def step(self, target: npt.ArrayLike) -> StepResult:
        """`command` and one control tick."""
        self.command(target)
        return self.advance()

    def advance(self) -> StepResult:
        """One control tick of physics towards the command in force."""
        mujoco, model, data = self._mj, self._model, self._data
        if self._command_age == self._lease_ticks:
            self.stop()
        self._command_age += 1
        # half a step, whole steps, half a step: contacts then belong to the final positions
        mujoco.mj_step2(model, data)
        mujoco.mj_step(model, data, self._substeps - 1)
        mujoco.mj_step1(model, data)
        self._tick += 1
        if self._tick % self.spec.camera_every == 0:
            self._take_frame()
        reward, holds = self._judge(data)
        self._strict_ticks = self._strict_ticks + 1 if holds else 0
        return StepResult(reward, reward == 4, self._strict_ticks >= self._strict_ticks_needed)

    def joints(self) -> Vector:
        """Measured joint state [14], rad and 0..1."""
        return scene.to_joints(self._data.qpos)

    def poses(self) -> Vector:
        """Every free body's [x, y, z, quaternion wxyz], the task's things first: for experts and judges, never for a policy."""
        return np.array(self._data.qpos[16:])

    def physics_state(self) -> Vector:
        """Time, positions and velocities as float64 ([46] for one cube), then what the task varies of the picture."""
        kind = self._mj.mjtState.mjSTATE_FULLPHYSICS
        state = np.empty(self._mj.mj_stateSize(self._model, kind))
        self._mj.mj_getState(self._model, self._data, state, kind)
        return np.concatenate([state, drawn_values(self.task, self._model)])

    def close(self) -> None:
        """Close the renderer that this simulator made."""
        if self._owns_renderer and self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _take_frame(self) -> None:
        """Remember the state that the cameras see; drawing waits until somebody looks."""
        self._frame_state, self._frame_ns = self.physics_state(), time.monotonic_ns()
        self._images = None

    def _forward_without_actuation(self) -> None:
        flag = int(self._mj.mjtDisableBit.mjDSBL_ACTUATION)
        self._model.opt.disableflags |= flag
        self._mj.mj_forward(self._model, self._data)
        self._model.opt.disableflags &= ~flag

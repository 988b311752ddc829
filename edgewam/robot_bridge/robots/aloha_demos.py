"""Demonstrations of the scripted expert in physics, as plain arrays.

The arms execute the expert's targets plus a slow random error, while the recorded actions stay the clean targets: the
recording thus shows how to come back from small mistakes (DART, Laskey et al. 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewam.robot_bridge.robot import Images
from edgewam.robot_bridge.robots import aloha_scene as scene
from edgewam.robot_bridge.robots.aloha_sim import SPEC, AlohaSim
from edgewam.robot_bridge.robots.aloha_task import Plan

NOISE_RAD = 0.03  # largest standard deviation of the error; each episode draws its own between 0 and this
_RHO = 0.93  # the error's correlation from one tick to the next


@dataclass(frozen=True, eq=False)
class Episode:
    """One demonstration of T control ticks; row t is what was seen before action t, flags are after it.

    states, actions, commands: float32 [T, 14], rad and 0..1; actions are the clean labels, commands what was executed.
    poses: float32 [T, 7 * things] (x, y, z in m, quaternion wxyz, of the task's things).  rewards: int64 [T]; strict: bool [T].
    images: camera -> uint8 [T / image_every, H, W, 3], empty when not rendered; row t belongs to frame t // image_every.
    """

    seed: int
    style: str
    prompt: str
    states: npt.NDArray[np.float32]
    actions: npt.NDArray[np.float32]
    commands: npt.NDArray[np.float32]
    poses: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.int64]
    strict: npt.NDArray[np.bool_]
    images: Images
    image_every: int = SPEC.camera_every

    @property
    def strict_success(self) -> bool:
        """Whether it succeeded strictly and is still a success at the end; drop all other episodes."""
        # a strict last tick also counts: a contact that the reward looks at may flicker
        return bool(self.strict.any() and (self.rewards[-1] == 4 or self.strict[-1]))

    def images_at(self, tick: int) -> Images:
        """Camera -> uint8 [H, W, 3]: what the cameras showed at a tick."""
        return {name: frames[tick // self.image_every] for name, frames in self.images.items()}


def rollout(
    env: AlohaSim,
    seed: int,
    style: str | None = None,
    noise_rad: float = NOISE_RAD,
    choice_seed: int | None = None,
) -> Episode:
    """Reset `env` to `seed` and let its task's expert act; pictures are drawn when `env` was made with rendering.

    style: by default the task's; EdgewamError for an unknown one.  seed fixes the scene; choice_seed (by default the seed as
    well, in a stream of its own) fixes the expert's free choices and the execution error.  noise_rad 0 executes the labels.
    """
    task = env.task
    style = task.styles[0] if style is None else style
    rng = np.random.default_rng([seed if choice_seed is None else choice_seed, 1])
    env.reset(seed)
    plan = task.plan(env.poses(), rng, style)
    commands = np.clip(plan.targets + _execution_error(rng, plan, noise_rad), SPEC.lower, SPEC.upper).astype(np.float32)
    states, poses, rewards, strict = [], [], [], []
    frames: dict[str, list[npt.NDArray[np.uint8]]] = {}
    for tick, command in enumerate(commands):
        states.append(env.joints())
        poses.append(env.poses()[: len(task.pose_names)])
        if tick % SPEC.camera_every == 0:
            for name, image in env.observe().images.items():
                frames.setdefault(name, []).append(image)
        result = env.step(command)
        rewards.append(result.reward)
        strict.append(result.strict_success)
    return Episode(
        seed=seed,
        style=style,
        prompt=task.prompt,
        states=np.array(states, np.float32),
        actions=plan.targets,
        commands=commands,
        poses=np.array(poses, np.float32),
        rewards=np.array(rewards),
        strict=np.array(strict),
        images={name: np.stack(images) for name, images in frames.items()},
    )


def _execution_error(rng: np.random.Generator, plan: Plan, noise_rad: float) -> npt.NDArray[np.float64]:
    """Stationary AR(1) error [T, 14] in rad; grippers have none."""
    error = np.zeros(plan.targets.shape)
    amplitude = rng.uniform(0.0, noise_rad) * plan.error_share
    shocks = rng.normal(0.0, np.sqrt(1 - _RHO**2), (len(error), len(scene.ARMS)))
    value = np.zeros(len(scene.ARMS))
    for tick, shock in enumerate(shocks):
        value = _RHO * value + shock
        error[tick, list(scene.ARMS)] = amplitude[tick] * value
    return error

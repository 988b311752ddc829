"""Demonstrations of the scripted expert in physics, as plain arrays.

The arms execute the expert's targets plus a slow random error, while the recorded actions stay the clean targets: the
recording thus shows how to come back from small mistakes (DART, Laskey et al. 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewam.robot_bridge.robot import Images
from edgewam.robot_bridge.robots import aloha_expert as expert
from edgewam.robot_bridge.robots import aloha_scene as scene
from edgewam.robot_bridge.robots.aloha_sim import SPEC, AlohaSim

NOISE_RAD = 0.03  # largest standard deviation of the error; each episode draws its own between 0 and this
_RHO = 0.93  # the error's correlation from one tick to the next
_CAREFUL = 0.35  # share of the error left where the work is delicate


@dataclass(frozen=True, eq=False)
class Episode:
    """One demonstration of T = 280 control ticks; row t is what was seen before action t, flags are after it.

    states, actions, commands: float32 [T, 14], rad and 0..1; actions are the clean labels, commands what was executed.
    cube_poses: float32 [T, 7] (x, y, z in m, quaternion wxyz).  rewards: int64 [T]; strict: bool [T].
    images: camera -> uint8 [T / image_every, H, W, 3], empty when not rendered; row t belongs to frame t // image_every.
    """

    seed: int
    style: str
    prompt: str
    states: npt.NDArray[np.float32]
    actions: npt.NDArray[np.float32]
    commands: npt.NDArray[np.float32]
    cube_poses: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.int64]
    strict: npt.NDArray[np.bool_]
    images: Images
    image_every: int = SPEC.camera_every

    @property
    def strict_success(self) -> bool:
        """Whether the left hand alone held the cube long enough and still has it at the end; drop all other episodes."""
        return bool(self.strict.any() and self.rewards[-1] == 4)

    def images_at(self, tick: int) -> Images:
        """Camera -> uint8 [H, W, 3]: what the cameras showed at a tick."""
        return {name: frames[tick // self.image_every] for name, frames in self.images.items()}


def rollout(
    env: AlohaSim,
    seed: int,
    style: expert.Style = "plain",
    noise_rad: float = NOISE_RAD,
    choice_seed: int | None = None,
) -> Episode:
    """Reset `env` to `seed` and let the expert act; pictures are drawn when `env` was made with rendering.

    seed fixes the scene; choice_seed (by default the seed as well, in a stream of its own) fixes the expert's free choices
    and the execution error.  noise_rad 0 executes the labels.
    """
    rng = np.random.default_rng([seed if choice_seed is None else choice_seed, 1])
    env.reset(seed)
    choices = expert.choose(rng, style)
    actions = expert.plan_choices(env.cube_pose(), choices)
    commands = np.clip(actions + _execution_error(rng, choices, noise_rad), SPEC.lower, SPEC.upper).astype(np.float32)
    states, cube_poses, rewards, strict = [], [], [], []
    frames: dict[str, list[npt.NDArray[np.uint8]]] = {}
    for tick, command in enumerate(commands):
        states.append(env.joints())
        cube_poses.append(env.cube_pose())
        if tick % SPEC.camera_every == 0:
            for name, image in env.observe().images.items():
                frames.setdefault(name, []).append(image)
        result = env.step(command)
        rewards.append(result.reward)
        strict.append(result.strict_success)
    return Episode(
        seed=seed,
        style=style,
        prompt=SPEC.prompts[0],
        states=np.array(states, np.float32),
        actions=actions,
        commands=commands,
        cube_poses=np.array(cube_poses, np.float32),
        rewards=np.array(rewards),
        strict=np.array(strict),
        images={name: np.stack(images) for name, images in frames.items()},
    )


def _execution_error(rng: np.random.Generator, choices: expert.Choices, noise_rad: float) -> npt.NDArray[np.float64]:
    """Stationary AR(1) error [280, 14] in rad; grippers have none."""
    error = np.zeros((expert.NUM_TICKS, SPEC.num_joints))
    amplitude = rng.uniform(0.0, noise_rad) * np.where(expert.careful_ticks(choices), _CAREFUL, 1.0)
    shocks = rng.normal(0.0, np.sqrt(1 - _RHO**2), (expert.NUM_TICKS, len(scene.ARMS)))
    value = np.zeros(len(scene.ARMS))
    for tick, shock in enumerate(shocks):
        value = _RHO * value + shock
        error[tick, list(scene.ARMS)] = amplitude[tick] * value
    return error

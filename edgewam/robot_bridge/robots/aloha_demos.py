"""Demonstrations of the scripted expert, and episodes of a policy, in physics, as plain arrays.

The arms execute the expert's targets plus a slow random error, while the recorded actions stay the clean targets: the
recording thus shows how to come back from small mistakes (DART, Laskey et al. 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.robot_bridge.evaluation.lockstep import LockstepSettings, run_episode
from edgewam.robot_bridge.policy import Policy
from edgewam.robot_bridge.robot import Images, StepResult
from edgewam.robot_bridge.robots import aloha_scene as scene
from edgewam.robot_bridge.robots.aloha_sim import SPEC, AlohaSim
from edgewam.robot_bridge.robots.aloha_task import Plan

POLICY_STYLE = "policy"  # of the episodes of a policy
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
    tape = _Tape(env)
    for action, command in zip(plan.targets, commands, strict=True):
        tape.step(command, action)
    return tape.episode(seed, style)


def play(env: AlohaSim, policy: Policy, seed: int) -> Episode:
    """Let a policy act in lockstep, as `evaluate` does: to its strict success, or to the end of the task's time.

    What it met, its mistakes included, is material for distilling, whatever became of it; it is nobody's demonstration.

    Raises:
        ContractError: its actions have the wrong shape or are not finite.
    """
    tape = _Tape(env)
    run_episode(tape, policy, seed, env.task.prompt, LockstepSettings(max_ticks=env.task.episode_ticks))
    return tape.episode(seed, POLICY_STYLE)


class _Tape:
    """A simulator that keeps what was seen before and after every step since its reset."""

    def __init__(self, env: AlohaSim) -> None:
        self._env = env
        self.spec = env.spec
        self.observe = env.observe
        self._clear()

    def _clear(self) -> None:
        self._rows: list[tuple[Any, ...]] = []
        self._frames: dict[str, list[npt.NDArray[np.uint8]]] = {}

    def reset(self, seed: int) -> None:
        self._clear()
        self._env.reset(seed)

    def step(self, target: npt.ArrayLike, action: npt.ArrayLike | None = None) -> StepResult:
        """Execute `target` [14]; `action` is recorded in its place when it is another."""
        if len(self._rows) % SPEC.camera_every == 0:
            for name, image in self._env.observe().images.items():
                self._frames.setdefault(name, []).append(image)
        seen = self._env.joints(), self._env.poses()[: len(self._env.task.pose_names)]
        result = self._env.step(target)
        self._rows.append((*seen, target if action is None else action, target, result.reward, result.strict_success))
        return result

    def episode(self, seed: int, style: str) -> Episode:
        """All of it."""
        states, poses, actions, commands, rewards, strict = zip(*self._rows, strict=True)
        return Episode(
            seed=seed,
            style=style,
            prompt=self._env.task.prompt,
            states=np.array(states, np.float32),
            actions=np.array(actions, np.float32),
            commands=np.array(commands, np.float32),
            poses=np.array(poses, np.float32),
            rewards=np.array(rewards),
            strict=np.array(strict),
            images={name: np.stack(images) for name, images in self._frames.items()},
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

"""A recorded episode as if it were a live robot: observations come by time, commands go nowhere and are compared.

`task` is an episode file (see `episode_file`) or a flight recording (`.mcap`); without one it plays a made-up example.  It tries
a policy, a door or a whole run without hardware: `edgewam run BUNDLE --robot replay --task episode.npz`.  It is open loop: what
is commanded does not change what is seen, so it says nothing about success.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.core.records import CAMERAS, Observation
from edgewam.robot_bridge.robot import Images, RobotSpec, StepResult, Vector
from edgewam.robot_bridge.robots.episode_file import Episode, encode
from edgewam.robot_bridge.robots.recorded_episode import load_recorded

DEFAULT_TASK = "example"
_PROMPT = "pick up the cube with the right hand and hand it over to the left hand"  # one that the shipped bundle knows
_NUM_TICKS = 200  # of the made-up example
_SIZES = ((128, 160), (64, 80), (64, 80))
IS_OPEN_LOOP = True  # nothing that is commanded moves it


def make(*, task: str = DEFAULT_TASK, render: bool = True, lease_ticks: int | None = None) -> Replay:
    """The robot at the first row of an episode file; ArtifactError when that cannot be read."""
    return Replay(open_episode(task), render, lease_ticks)


def make_renderer(task: str = DEFAULT_TASK) -> ReplayRenderer:
    """The recorded pictures, for `Replay.physics_state` arrays of the same file, in any process."""
    return ReplayRenderer(open_episode(task))


def describe(task: str) -> RobotSpec:
    """Joints, limits, rates, cameras, prompt and length of an episode file; ArtifactError when it cannot be read."""
    return open_episode(task).spec("replay")


def open_episode(task: str) -> Episode:
    """An episode file, the first episode of a flight recording (`.mcap`), or the made-up example."""
    if task == DEFAULT_TASK:
        return example()
    return load_recorded(Path(task)) if task.endswith(".mcap") else Episode.load(task)


@functools.cache
def example() -> Episode:
    """Two arms that sway for four seconds before three cameras; made up, of the shapes of the policy that ships with edgewam."""
    joint_names = tuple(
        f"{side}_{name}"
        for side in ("left", "right")
        for name in ("waist", "shoulder", "elbow", "forearm", "wrist", "roll", "gripper")
    )
    is_gripper = np.array([name.endswith("gripper") for name in joint_names])
    sway = 0.3 * np.sin(2 * np.pi * np.arange(_NUM_TICKS + 1) / 100)[:, None] * np.where(is_gripper, 0.5, 1.0)
    path = (np.where(is_gripper, 0.5, 0.0) + sway).astype(np.float32)
    pictures = {camera: _stripes(*size, _NUM_TICKS // 2) for camera, size in zip(CAMERAS, _SIZES, strict=True)}
    lower, upper = np.where(is_gripper, 0.0, -1.5), np.where(is_gripper, 1.0, 1.5)
    speed = np.full(len(joint_names), 3.0)
    return Episode("example", _PROMPT, 50.0, 25.0, joint_names, path[:-1], path[1:], pictures, lower, upper, speed)


def _stripes(height: int, width: int, count: int) -> list[bytes]:
    """A pattern that moves; eight pictures, over and over."""
    shifts = [(np.arange(width) + width * phase // 8) % width for phase in range(8)]
    files = encode((np.ones((height, 1, 3)) * shift[:, None] * 255 / width).astype(np.uint8) for shift in shifts)
    return [files[k % len(files)] for k in range(count)]


SPEC = describe(DEFAULT_TASK)


class ReplayRenderer:
    """`Renderer` over the pictures of an episode."""

    def __init__(self, episode: Episode) -> None:
        self._episode = episode

    def render(self, physics_state: Vector) -> Images:
        """The pictures of the tick that `physics_state` [1] names."""
        return self._episode.images(int(physics_state[0]))

    def close(self) -> None:
        """Nothing to release."""


class Replay:
    """`Simulator` whose state is a row number; every seed plays the same episode from its first row."""

    def __init__(self, episode: Episode, render: bool, lease_ticks: int | None) -> None:
        self.spec = episode.spec("replay")
        self._episode, self._render = episode, render
        self._lease_ticks = self.spec.lease_ticks if lease_ticks is None else lease_ticks
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Back to the first row; what was compared so far is forgotten."""
        self._tick = 0
        self._command: Vector | None = None
        self._command_age = 0
        self._differences: list[Vector] = []
        self._silent_ticks = 0
        self._frame_ns = time.monotonic_ns()

    def observe(self) -> Observation:
        """The row of the present tick; after the end, the last one."""
        row = min(self._tick, len(self._episode) - 1)
        images = self._episode.images(row) if self._render else {}
        return Observation(images, self._episode.states[row].copy(), self._tick, self._frame_ns)

    def command(self, target: npt.ArrayLike) -> None:
        """Take a target [D] to be compared with the recorded action, and renew the lease."""
        self._command = self.spec.checked(target)
        self._command_age = 0

    def stop(self) -> None:
        """From here on nothing is commanded, until the next command."""
        self._command = None

    def step(self, target: npt.ArrayLike) -> StepResult:
        """`command` and one control tick."""
        self.command(target)
        return self.advance()

    def advance(self) -> StepResult:
        """One row further; a recording is never a success."""
        if self._command_age == self._lease_ticks:
            self.stop()
        self._command_age += 1
        if self._command is None:
            self._silent_ticks += 1
        elif self._tick < len(self._episode):
            self._differences.append(self._command - self._episode.actions[self._tick])
        self._tick += 1
        if self._tick % self._episode.camera_every == 0:
            self._frame_ns = time.monotonic_ns()
        return StepResult(reward=0, success=False, strict_success=False)

    def physics_state(self) -> Vector:
        """The row number as float64 [1]."""
        return np.array([min(self._tick, len(self._episode) - 1)], np.float64)

    def outcome(self) -> dict[str, Any]:
        """Since the last reset: ticks compared, ticks without a command in force, and command minus recorded action by joint."""
        facts: dict[str, Any] = {"compared_ticks": len(self._differences), "silent_ticks": self._silent_ticks}
        if self._differences:
            difference = np.array(self._differences)
            for name, value in (("rms", np.sqrt((difference**2).mean(0))), ("max", np.abs(difference).max(0))):
                facts[f"action_{name}"] = dict(zip(self.spec.joint_names, value.round(6).tolist(), strict=True))
        return facts

    def close(self) -> None:
        """Nothing to release."""

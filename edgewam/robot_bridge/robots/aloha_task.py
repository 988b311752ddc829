"""What a task on the simulated ALOHA is: scene, judge and expert.  A task is one module in `aloha_tasks/` that offers `TASK`.

The seed of an episode fixes the scene: where the things lie (`sample`) and, where a task varies them, properties of the
compiled model such as colours, light, cameras, mass and friction (`variation`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.core import plugins
from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.robot import Vector

POSE = ("x", "y", "z", "qw", "qx", "qy", "qz")  # of a free body: metres in the world, and a unit quaternion

Judge = Callable[[Any], tuple[int, bool]]  # mujoco.MjData -> reward 0..4, and whether the strict condition holds at this tick
Variation = Callable[[int], Mapping[str, npt.NDArray[Any]]]  # seed -> whole new value of some fields of the mujoco.MjModel


@dataclass(frozen=True, eq=False)
class Plan:
    """An expert's demonstration of T control ticks.

    targets: float32 [T, 14], rad and 0..1.  error_share: float64 [T], how much of the execution error the work allows, 0..1.
    """

    targets: npt.NDArray[np.float32]
    error_share: Vector


@dataclass(frozen=True)
class Task:
    """One task.

    prompt: at most 16 words, which is what the small text encoder takes; each task has its own.
    things: the free bodies that matter, in the order of their poses; `sample` may place more, after them.
    load_model: a fresh mujoco.MjModel whose positions are 16 of the arms, then 7 per free body.
    sample: seed -> poses [7 * bodies] at the start.  judge: made from the model that it shall judge.
    variation: made from a fresh model; None when every seed has the same model.  drawn_fields: those of its fields that a
    picture depends on.
    expert: (poses at the start, generator of the free choices, style) -> plan; styles: what it knows, the default first.
    episode_ticks: the horizon; an attempt that has not succeeded strictly by then has failed.
    """

    name: str
    prompt: str
    things: tuple[str, ...]
    load_model: Callable[[], Any]
    sample: Callable[[int], Vector]
    judge: Callable[[Any], Judge]
    expert: Callable[[Vector, np.random.Generator, str], Plan]
    styles: tuple[str, ...]
    variation: Callable[[Any], Variation] | None = None
    drawn_fields: tuple[str, ...] = ()
    episode_ticks: int = 300

    @property
    def pose_names(self) -> tuple[str, ...]:
        """Names of the privileged values of an episode, such as cube_x."""
        return tuple(f"{thing}_{axis}" for thing in self.things for axis in POSE)

    def plan(self, poses: Vector, rng: np.random.Generator, style: str) -> Plan:
        """Let the expert plan; EdgewamError for an unknown style."""
        self.check_style(style)
        return self.expert(poses, rng, style)

    def check_style(self, style: str) -> None:
        """Refuse a style that the expert does not know."""
        if style not in self.styles:
            raise EdgewamError(f"Unknown expert style '{style}'. Available: {', '.join(self.styles)}.")


def load_task(name: str) -> Task:
    """A task by its module name or dotted path; PluginError lists what there is."""
    task: Task = plugins.load("task", name).TASK
    return task

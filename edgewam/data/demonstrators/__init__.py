"""Who shows a robot's task: one module per robot, named like the robot, found by its file name.

A module offers `open_demonstrator(task, style, noise_rad, policy) -> Demonstrator`, nothing else.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol

from edgewam.core.errors import PluginError
from edgewam.data.schema import Episode, Schema
from edgewam.robot_bridge.policy import Policy


class Demonstrator(Protocol):
    """Records one episode per seed; the seed fixes everything.

    task, style: names, also when the defaults were asked for; the style of a policy's episodes is "policy".
    """

    schema: Schema
    task: str
    style: str

    def record(self, seed: int) -> Episode | None:
        """One demonstration, or None when it did not strictly succeed and must not be learned from; of a policy, any episode."""

    def close(self) -> None:
        """Release the simulator or the robot."""


def names() -> list[str]:
    """Robots that somebody can demonstrate on."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__))


def open_demonstrator(
    robot: str, task: str | None, style: str | None, noise_rad: float, policy: Policy | None = None
) -> Demonstrator:
    """The demonstrator of a robot's task, in a style (None: the defaults), or the policy in its place.

    Raises:
        EdgewamError: no such robot, task or style; it lists what there is.
    """
    if robot not in names():
        raise PluginError(f"No demonstrator for robot '{robot}'. Available: {', '.join(names())}.")
    module = importlib.import_module(f"{__name__}.{robot}")
    demonstrator: Demonstrator = module.open_demonstrator(task, style, noise_rad, policy)
    return demonstrator

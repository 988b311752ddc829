"""Who shows a robot's task: one module per robot, named like the robot, found by its file name.

A module offers `open_demonstrator(task, style, noise_rad) -> Demonstrator`, nothing else.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol

from edgewam.core.errors import PluginError
from edgewam.data.schema import Episode, Schema


class Demonstrator(Protocol):
    """Records one episode per seed; the seed fixes everything.  task, style: names, also when the defaults were asked for."""

    schema: Schema
    task: str
    style: str

    def record(self, seed: int) -> Episode | None:
        """One demonstration, or None when it did not strictly succeed and must not be learned from."""

    def close(self) -> None:
        """Release the simulator or the robot."""


def names() -> list[str]:
    """Robots that somebody can demonstrate on."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__))


def open_demonstrator(robot: str, task: str | None, style: str | None, noise_rad: float) -> Demonstrator:
    """The demonstrator of a robot's task, in a style (None: the defaults); EdgewamError lists what there is."""
    if robot not in names():
        raise PluginError(f"No demonstrator for robot '{robot}'. Available: {', '.join(names())}.")
    demonstrator: Demonstrator = importlib.import_module(f"{__name__}.{robot}").open_demonstrator(task, style, noise_rad)
    return demonstrator

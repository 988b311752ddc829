"""A robot owner's own veto over commands: keep the arms apart, keep out of the box of the camera.

The function gets a command [D] that every other limit allows, and returns it, another one, or None to refuse.  It is loaded
once; whatever it does wrong is a refusal, and what it returns is clamped again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.control.safety import Vector

Workspace = Callable[[Vector], Vector | None]


def load_workspace(name: str | None) -> Workspace | None:
    """The function of a dotted name, guarded; None without a name.

    Raises:
        EdgewamError: nothing callable has this name.
    """
    if name is None:
        return None
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise EdgewamError(
            f"No workspace function '{name}' ({error}). Give package.module.function of something importable."
        ) from error
    if not callable(found):
        raise EdgewamError(f"'{name}' is no function. A workspace is f(command [D]) -> command [D], or None to refuse.")
    return guarded(found)


def guarded(function: Callable[[Vector], Any]) -> Workspace:
    """A function that never raises and returns a finite float64 [D] or None."""

    def ask(command: Vector) -> Vector | None:
        try:
            answer = function(command.copy())
            given = None if answer is None else np.asarray(answer)
        except Exception:  # a mistake in it must stop the arm, not the loop
            return None
        if given is None or given.dtype.kind not in "fiu" or given.shape != command.shape:
            return None  # numbers only: [True, True] is no pose
        return given.astype(np.float64) if np.isfinite(given).all() else None

    return ask

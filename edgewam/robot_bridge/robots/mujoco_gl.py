"""Import MuJoCo with a graphics library that works without a screen: EGL, else OSMesa, else physics only.

MUJOCO_GL is read when MuJoCo is first imported, so every module here gets MuJoCo from `import_mujoco`.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

from edgewam.core.errors import EdgewamError, require

APT_COMMAND = "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri"
_LIBRARIES = (("egl", "libEGL.so.1"), ("osmesa", "libOSMesa.so"), ("osmesa", "libOSMesa.so.8"))


def import_mujoco(*, render: bool = False) -> Any:
    """The mujoco module; a MUJOCO_GL set by the user is left alone.

    Raises:
        MissingExtraError: mujoco is not installed.
        EdgewamError: `render` is asked for and this machine has no EGL or OSMesa library.
    """
    if "mujoco" not in sys.modules and not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = next((name for name, library in _LIBRARIES if _loads(library)), "disable")
    if render and os.environ.get("MUJOCO_GL", "").lower() in ("disable", "disabled", "off", "false", "0"):
        raise EdgewamError(_no_graphics("neither libEGL nor libOSMesa was found, or MUJOCO_GL disables rendering"))
    try:
        return require("mujoco", extra="sim")
    except (ImportError, AttributeError, OSError) as error:  # what PyOpenGL raises for a library that is not there
        raise EdgewamError(_no_graphics(f"MUJOCO_GL={os.environ['MUJOCO_GL']} failed: {error}")) from error


def open_gl_context(width: int, height: int) -> Any:
    """A current off-screen OpenGL context; EdgewamError with the installing command when the drivers are missing."""
    mujoco = import_mujoco(render=True)
    try:
        context = mujoco.GLContext(width, height)
        context.make_current()
    except Exception as error:  # EGL, OSMesa and PyOpenGL each have their own exception classes
        raise EdgewamError(_no_graphics(f"no context with MUJOCO_GL={os.environ.get('MUJOCO_GL')}: {error}")) from error
    return context


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _no_graphics(reason: str) -> str:
    return f"Cannot render the simulator ({reason}). Install a software renderer with: {APT_COMMAND} ; then unset MUJOCO_GL."

"""Import MuJoCo with a graphics library that works without a screen: EGL, else OSMesa, else physics only.

MuJoCo reads MUJOCO_GL when it is first imported, so every module here gets it from `import_mujoco`.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from typing import Any

from edgewam.core.errors import EdgewamError, MissingExtraError, require

APT_COMMAND = "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri"
_LIBRARIES = (("egl", "libEGL.so.1"), ("osmesa", "libOSMesa.so"), ("osmesa", "libOSMesa.so.8"))


def import_mujoco() -> Any:
    """The mujoco module; a MUJOCO_GL set by the user is left alone.

    Raises:
        MissingExtraError: mujoco is not installed.
        EdgewamError: it is, but its graphics library is not.
    """
    if not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = next((name for name, library in _LIBRARIES if _loads(library)), "disable")
    try:
        return require("mujoco", extra="sim")
    except MissingExtraError:
        raise
    except Exception as error:  # PyOpenGL and MuJoCo have their own classes for a library that is not there
        raise EdgewamError(_no_graphics(f"MUJOCO_GL={os.environ['MUJOCO_GL']}: {error}")) from error


def open_contexts(model: Any) -> tuple[Any, Any]:
    """(OpenGL context, MjrContext) that draw `model` off screen, at up to its vis.global_ offwidth x offheight.

    Raises:
        EdgewamError: this machine has no graphics library or no driver; the message has the installing command.
    """
    mujoco = import_mujoco()
    kind = os.environ["MUJOCO_GL"].lower()
    if kind in ("disable", "disabled", "off", "false", "0"):
        raise EdgewamError(_no_graphics(f"MUJOCO_GL={kind}: neither libEGL nor libOSMesa was found, or you disabled it"))
    try:
        # mujoco.GLContext was fixed when mujoco was first imported, perhaps by someone else and for a screen
        context_class = importlib.import_module(f"mujoco.{kind}").GLContext if kind in ("egl", "osmesa") else mujoco.GLContext
        gl = context_class(model.vis.global_.offwidth, model.vis.global_.offheight)
        gl.make_current()
        context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    except Exception as error:  # as above
        raise EdgewamError(_no_graphics(f"MUJOCO_GL={kind}: {error}")) from error
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
    return gl, context


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _no_graphics(reason: str) -> str:
    return f"Cannot render the simulator ({reason}). Install a software renderer with: {APT_COMMAND} ; then unset MUJOCO_GL."

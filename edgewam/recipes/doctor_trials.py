"""What `edgewam doctor` really tries, each in a process of its own: backends, the bundle, drawing, real-time permissions.

The functions here are called in child processes (`profiles/probe.py`); only `trials` runs in the doctor itself.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.profiles.probe import Probe

REFERENCE = "eager"
RENDERERS = ("egl", "osmesa", "glfw")
_PRIORITY = 60  # what the io process asks for
_BALL = '<mujoco><worldbody><light pos="0 0 4"/><geom type="sphere" size="1" rgba="1 0 0 1"/></worldbody></mujoco>'


def trials(bundle: Path) -> list[Probe]:
    """Everything to try, what matters most first."""
    from edgewam.core import plugins

    here = f"{__name__}."
    draws = [Probe(f"render {kind}", f"{here}draw", {"kind": kind}, {"MUJOCO_GL": kind}) for kind in RENDERERS]
    others = [name for name in plugins.names("backend_run") if name != REFERENCE]
    return [
        Probe("bundle", f"{here}open_bundle", {"path": str(bundle)}),
        Probe("torch", f"{here}with_torch"),
        *(Probe(f"run {name}", f"{here}run_backend", {"name": name}) for name in others),
        *draws,
        Probe("real time", f"{here}real_time"),
        Probe("records", f"{here}records"),
    ]


def open_bundle(path: str) -> dict[str, Any]:
    """Open a bundle, which repeats its golden vectors, and compute one action chunk."""
    from edgewam.core import plugins
    from edgewam.runtime.bundle import Bundle

    opened = Bundle.open(path, threads=1)
    if opened.policy is not None:
        plugins.load("policy", opened.policy).timed_calls(opened)["L_chunk"]()
    return {"digest": opened.digest, "backend": opened.backend}


def run_backend(name: str) -> dict[str, Any]:
    """Whether the run half of a backend works: its own `supports`, then its vendor library.

    The library is put to the test with a file that is not there: a backend that works says just that.
    """
    from edgewam.core import plugins
    from edgewam.core.errors import ArtifactError
    from edgewam.core.stage import Cost, Stage
    from edgewam.runtime.engine import EngineOptions

    backend = plugins.load("backend_run", name)
    support = backend.supports()
    if not support.ok:
        return {"ok": False, "reason": support.reason}
    with tempfile.TemporaryDirectory() as empty:
        try:
            backend.load(Stage("none", (), (), Cost(0, 0, 0, 0)), Path(empty), {"file": "none"}, EngineOptions(1))
        except ArtifactError:
            return {"ok": True, "reason": ""}
    raise EdgewamError(f"Backend '{name}' loaded a file that does not exist.")


def with_torch() -> Iterator[dict[str, Any]]:
    """All that begins by importing torch, which takes longest, in one process: every build half, then the reference's run."""
    build = build_backends()
    yield {"build": build}
    yield {"build": build, "run": run_backend(REFERENCE)}


def build_backends() -> dict[str, Any]:
    """Name -> whether its build half would take a plain stage here."""
    from edgewam.core import plugins
    from edgewam.core.stage import Cost, Stage
    from edgewam.core.tensor_spec import TensorSpec

    x, y = TensorSpec("x", (1,)), TensorSpec("y", (1,))
    stage = Stage("copy", (x,), (y,), Cost(0, 0, 0, 0), lambda value: (value,))
    found: dict[str, Any] = {}
    for name in plugins.names("backend_build"):
        try:
            support = plugins.load("backend_build", name).supports(stage)
            found[name] = {"ok": support.ok, "reason": support.reason}
        except ModuleNotFoundError as error:
            missing = "the package '{}' is not installed; install it with: pip install 'edgewam[train]'"
            found[name] = {"ok": False, "reason": missing.format(error.name)}
    return found


def draw(kind: str) -> dict[str, Any]:
    """Draw a red ball off screen and look at the picture.

    Raises:
        EdgewamError: no graphics library or driver, or a picture without the ball.
    """
    import numpy as np

    from edgewam.robot_bridge.robots.mujoco_gl import import_mujoco, open_contexts

    assert os.environ["MUJOCO_GL"] == kind
    mujoco = import_mujoco()
    model = mujoco.MjModel.from_xml_string(_BALL)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    kept, context = open_contexts(model)
    scene = mujoco.MjvScene(model, 10)
    camera = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, camera, mujoco.mjtCatBit.mjCAT_ALL, scene)
    view = mujoco.MjrRect(0, 0, 64, 64)
    picture = np.zeros((64, 64, 3), np.uint8)
    mujoco.mjr_render(view, scene, context)
    mujoco.mjr_readPixels(picture, None, view, context)
    centre = picture[32, 32].astype(int)
    del kept
    if not centre[0] > 2 * centre[1:].max():
        raise EdgewamError(f"MUJOCO_GL={kind} draws, but a red ball came out as {centre.tolist()}.")
    return {"red": int(centre[0])}


def real_time() -> dict[str, str]:
    """What this user's processes are granted: scheduler, locked memory."""
    from edgewam.robot_bridge.clock import become_real_time

    return become_real_time(_PRIORITY)


def records() -> dict[str, int]:
    """Make and read one shared record as the processes of a run do."""
    import numpy as np

    from edgewam.robot_bridge.records.shm_record import SharedRecord

    record = SharedRecord(np.dtype([("value", "<i8")]))
    try:
        value = record.blank()
        value["value"] = 7
        record.write(value)
        found = record.read()
        assert found is not None
        return {"value": int(found[1]["value"])}
    finally:
        record.close()

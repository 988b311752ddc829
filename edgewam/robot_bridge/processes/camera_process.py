"""The camera process: images at the cameras' own rate, each with its capture time.

A simulator's cameras are drawn from the physics states that the driver publishes; when drawing is too slow, states are skipped,
never queued.  A real robot's cameras are grabbed on an absolute clock.  A camera that fails is lost, not the process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from edgewam.core import plugins
from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.clock import NS, become_preferred, now_ns, sleep_until
from edgewam.robot_bridge.processes.camera_frames import FrameWriter
from edgewam.robot_bridge.processes.child import Link
from edgewam.robot_bridge.robot import CameraImage, Cameras, Renderer

POLL_NS = 500_000
FIRST_IMAGE_S = 10.0  # a camera that has given no image by then is broken
MAX_FAILURES_S = 3.0  # cameras that only raise for so long: a new process may open them again


def run(config: Mapping[str, Any], link: Link) -> dict[str, Any]:
    """Publish frames until told to stop; returns how many, how many were skipped, and how often each camera was lost."""
    module = plugins.load("robot", config["robot"])
    granted = become_preferred()
    shooter = _Shooter(config, link)
    if hasattr(module, "make_renderer"):
        skipped = _draw(config, link, module, shooter)
    elif hasattr(module, "make_cameras"):
        skipped = _grab(config, link, module, shooter)
    else:
        raise EdgewamError(f"Robot '{config['robot']}' has neither make_cameras() nor make_renderer(), so nobody sees anything.")
    return {
        "frames": shooter.count,
        "skipped_frames": skipped,
        "lost_images": {name: n for name, n in shooter.frames.lost.items() if n},
        "real_time": {"scheduler": granted},
    }


class _Shooter:
    """Takes one frame at a time, and knows when cameras have failed for too long."""

    def __init__(self, config: Mapping[str, Any], link: Link) -> None:
        self._link, self._name = link, config["robot"]
        self.frames = FrameWriter(link.wires, list(config["wires"]["camera_shapes"]))
        self._begun_ns = 0  # first try
        self._succeeded_ns = 0  # last try that raised nothing
        self.count = 0

    def shoot(self, take: Callable[[], Mapping[str, Any]], moment: Any) -> None:
        """Publish what `take` gives, once every camera has given an image.

        Raises:
            EdgewamError: nothing but exceptions for too long.
        """
        begin_ns = now_ns()
        if not self._begun_ns:
            self._begun_ns = self._succeeded_ns = begin_ns
        try:
            self.frames.take(take())
            self._succeeded_ns = now_ns()
        except Exception as error:  # a camera library may raise anything; the other cameras and the arm go on
            if isinstance(error, EdgewamError) and not self.count:
                raise
            self.frames.fail(f"{type(error).__name__}: {error}")
        end_ns = now_ns()
        if end_ns - self._succeeded_ns > MAX_FAILURES_S * NS:
            raise EdgewamError(
                f"The cameras of '{self._name}' failed for {MAX_FAILURES_S:.0f} s: {self._why(self.frames.reasons)}"
            )
        if not self.frames.missing:
            self.frames.publish(moment, end_ns - begin_ns)
            self.count += 1

    def _why(self, names: Any) -> str:
        return "; ".join(f"{name} {self.frames.reasons.get(name, 'gave nothing')}" for name in names) + "."

    def report(self) -> None:
        """Ready with the first frame.

        Raises:
            EdgewamError: no image from a camera since the start.
        """
        missing = self.frames.missing
        if missing and self._begun_ns and now_ns() - self._begun_ns > FIRST_IMAGE_S * NS:
            raise EdgewamError(f"Cameras of '{self._name}' without a first image: {self._why(missing)} Check cable and device.")
        self._link.report(is_ready=self.count > 0, count=self.count)


def _draw(config: Mapping[str, Any], link: Link, module: ModuleType, shooter: _Shooter) -> int:
    """Draw a frame per camera period of an episode; returns how many periods were skipped."""
    every = int(config["camera_every"])
    renderer: Renderer = module.make_renderer(**_for_renderer(config))
    physics = link.wires["physics"]
    version, skipped, last = 0, 0, (-1, -1)
    try:
        while not link.is_stopping:
            shooter.report()
            newer = physics.read(version)
            if newer is None:
                sleep_until(now_ns() + POLL_NS)
                continue
            version, value = newer
            slot = (int(value["episode"]), int(value["episode_tick"]) // every)
            is_repeat = slot == last and int(value["tick"]) > 0  # tick 0 is published again at the epoch
            if is_repeat:
                continue
            state, t_ns = value["physics"][: int(value["length"])].copy(), int(value["t_ns"])
            shooter.shoot(partial(_drawn, renderer, state, t_ns), value)
            skipped += slot[1] - last[1] - 1 if slot[0] == last[0] and slot[1] > last[1] else 0
            last = slot
    finally:
        renderer.close()
    return skipped


def _drawn(renderer: Renderer, physics_state: Any, t_ns: int) -> dict[str, CameraImage]:
    """An image is as old as the state it shows, however long drawing took."""
    return {name: CameraImage(image, t_ns) for name, image in renderer.render(physics_state).items()}


def _grab(config: Mapping[str, Any], link: Link, module: ModuleType, shooter: _Shooter) -> int:
    """Grab a frame per camera period; returns how many periods were skipped."""
    period_ns = round(NS * config["camera_every"] / config["control_hz"])
    cameras: Cameras = module.make_cameras(**config["robot_options"])
    begin_ns, number, skipped = now_ns(), 0, 0
    try:
        while not link.is_stopping:
            late_ns = sleep_until(begin_ns + number * period_ns) - begin_ns - number * period_ns
            skipped += late_ns // period_ns
            number += 1 + late_ns // period_ns
            shooter.report()
            moment = link.wires["state"].read()
            if moment is not None:
                shooter.shoot(cameras.grab, moment[1])
    finally:
        cameras.close()
    return skipped


def _for_renderer(config: Mapping[str, Any]) -> dict[str, Any]:
    """How fast a simulator is commanded does not matter to who draws it."""
    return {name: value for name, value in config["robot_options"].items() if name != "control_hz"}

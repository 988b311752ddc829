"""The camera process: draws the robot's cameras at their own rate from the physics states that the driver publishes.

An image is stamped with the time of the state it shows.  When drawing is too slow, states are skipped, never queued.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewam.core import plugins
from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.child import Link
from edgewam.robot_bridge.clock import become_preferred, now_ns, sleep_until

POLL_NS = 500_000


def run(config: Mapping[str, Any], link: Link) -> dict[str, Any]:
    """Draw until told to stop; returns how many frames were drawn and how many were skipped."""
    module = plugins.load("robot", config["robot"])
    if not hasattr(module, "make_renderer"):
        raise EdgewamError(f"Robot '{config['robot']}' has no make_renderer(), so nothing can draw its cameras.")
    every, names = int(config["camera_every"]), list(module.SPEC.camera_shapes)
    granted = become_preferred()
    renderer = module.make_renderer(**config["robot_options"])
    physics, frame, cameras = link.wires["physics"], link.wires["frame"], link.wires["cameras"]
    version, drawn, skipped, last = 0, 0, 0, (-1, -1)
    try:
        while not link.is_stopping:
            link.report(is_ready=drawn > 0, count=drawn)
            newer = physics.read(version)
            if newer is None:
                sleep_until(now_ns() + POLL_NS)
                continue
            version, value = newer
            slot = (int(value["episode"]), int(value["episode_tick"]) // every)
            is_repeat = slot == last and int(value["tick"]) > 0  # tick 0 is published again at the epoch
            if is_repeat:
                continue
            begin_ns = now_ns()
            images = renderer.render(value["physics"][: int(value["length"])].copy())
            picture = frame.blank()
            for name in ("episode", "tick", "episode_tick", "t_ns", "state"):
                picture[name] = value[name]
            for name in names:
                picture[name] = images[name]
            picture["render_ns"] = now_ns() - begin_ns
            frame.write(picture)
            drawn += 1
            stamps = cameras.blank()
            stamps["number"], stamps["t_camera_ns"] = drawn, value["t_ns"]
            cameras.write(stamps)
            skipped += slot[1] - last[1] - 1 if slot[0] == last[0] and slot[1] > last[1] else 0
            last = slot
    finally:
        renderer.close()
    return {"frames": drawn, "skipped_frames": skipped, "real_time": {"scheduler": granted}}

"""One camera frame after another out of whatever the cameras gave: a bad image is replaced by the last good one and marked.

A frame is published at the cameras' rate even when a camera is lost, so that everybody sees its age grow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgewam.robot_bridge.clock import now_ns
from edgewam.robot_bridge.records.shm_record import Value
from edgewam.robot_bridge.records.wires import Wires
from edgewam.robot_bridge.robot import CameraImage

BLACK = 8  # no pixel of a camera that works is darker than this everywhere: sensors have noise
_MOMENT = ("episode", "tick", "episode_tick", "t_ns", "state")


class FrameWriter:
    """Writes the records `frame` and `cameras`."""

    def __init__(self, wires: Wires, names: list[str]) -> None:
        self._frame, self._stamps = wires["frame"], wires["cameras"]
        self._shapes = {name: self._frame.layout[name].shape for name in names}
        self._good: dict[str, CameraImage] = {}
        before = self._frame.read()  # a predecessor's, if there was one: numbers go on
        self._number = int(before[1]["number"]) if before else 0
        self.lost: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}  # by camera, why it is lost now

    @property
    def missing(self) -> list[str]:
        """Cameras of which no good image has ever come."""
        return [name for name in self._shapes if name not in self._good]

    def take(self, images: Mapping[str, Any]) -> None:
        """What the cameras gave, CameraImage by name.  One that is not there has nothing new."""
        for name, shape in self._shapes.items():
            if name not in images:
                continue
            reason = what_is_wrong(images[name], shape)
            if reason is None:
                self._good[name] = CameraImage(images[name].image.copy(), int(images[name].t_ns))
                self.reasons.pop(name, None)
            else:
                self.reasons[name] = reason

    def fail(self, reason: str) -> None:
        """All cameras failed together."""
        self.reasons = dict.fromkeys(self._shapes, reason)

    def publish(self, moment: Value, render_ns: int) -> None:
        """A frame of the newest good images; `moment`: a record with the robot's state and ticks at that time."""
        frame, stamps = self._frame.blank(), self._stamps.blank()
        for name in _MOMENT:
            frame[name] = moment[name]
        for i, name in enumerate(self._shapes):
            if name in self._good:
                frame[name], frame["t_camera_ns"][i] = self._good[name].image, self._good[name].t_ns
            frame["is_lost"][i] = name in self.reasons or name not in self._good
            self.lost[name] += int(frame["is_lost"][i])
        self._number += 1
        frame["number"], frame["render_ns"], frame["t_frame_ns"] = self._number, render_ns, now_ns()
        self._frame.write(frame)
        for name in ("number", "t_camera_ns", "is_lost"):
            stamps[name] = frame[name]
        self._stamps.write(stamps)


def what_is_wrong(given: Any, shape: tuple[int, ...]) -> str | None:
    """Why something a camera gave is no image [H, W, 3] uint8 with a capture time, or None."""
    image, t_ns = getattr(given, "image", None), getattr(given, "t_ns", None)
    if not isinstance(image, np.ndarray) or t_ns is None:
        return "gave no image"
    if image.shape != shape or image.dtype != np.uint8:
        return f"gave {image.dtype} {list(image.shape)} instead of uint8 {list(shape)}"
    if not 0 <= t_ns <= now_ns():
        return "gave a capture time that is not of the monotonic clock, or in the future"
    return "is black" if image.max() <= BLACK else None

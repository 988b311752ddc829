"""The newest good readings of the robot, and how many messages were refused, by topic.

One publisher per topic: while it is heard, another one on the same topic is refused, so that two robots never mix.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewam.robot_bridge.serving.handler import DoorError, Floats

NEVER_NS = 1 << 62  # age of what has never come


@dataclass(frozen=True)
class Reading:
    """One value and when it arrived, CLOCK_MONOTONIC nanoseconds."""

    value: npt.NDArray[np.generic]
    t_ns: int


@dataclass(frozen=True)
class Snapshot:
    """What is known at one moment: joint state float32 [D] and images by camera; None and missing when nothing has come yet."""

    state: Reading | None
    images: Mapping[str, Reading]

    def camera_age_ns(self, now_ns: int, cameras: Mapping[str, object]) -> int:
        """Age of the oldest of these cameras; NEVER_NS when one has not come."""
        return max((now_ns - self.images[name].t_ns if name in self.images else NEVER_NS for name in cameras), default=0)


@dataclass
class _Source:
    publisher: object
    t_ns: int


class Inputs:
    """Safe to call from several threads.  silent_ns: a publisher that was not heard for so long may be replaced."""

    def __init__(self, silent_ns: int) -> None:
        self._lock = threading.Lock()
        self._silent_ns = silent_ns
        self._state: Reading | None = None
        self._images: dict[str, Reading] = {}
        self._sources: dict[str, _Source] = {}
        self._refused: Counter[str] = Counter()
        self.last_refusal = ""

    def admit(self, topic: str, publisher: object, t_ns: int) -> None:
        """Hear a publisher.

        Raises:
            DoorError: `not_controller`, another one publishes on this topic.
        """
        with self._lock:
            source = self._sources.get(topic)
            if source is not None and source.publisher != publisher and t_ns - source.t_ns < self._silent_ns:
                raise DoorError("not_controller", f"Two publishers on {topic}; the one that came first is heard.")
            self._sources[topic] = _Source(publisher, t_ns)

    def set_state(self, state: Floats, t_ns: int) -> None:
        """A new joint state [D]."""
        with self._lock:
            self._state = Reading(state, t_ns)

    def set_image(self, camera: str, image: npt.NDArray[np.uint8], t_ns: int) -> None:
        """A new image of a camera."""
        with self._lock:
            self._images[camera] = Reading(image, t_ns)

    def refuse(self, topic: str, why: str) -> None:
        """Count a message that was not believed."""
        with self._lock:
            self._refused[topic] += 1
            self.last_refusal = f"{topic}: {why}"

    def snapshot(self) -> Snapshot:
        """The newest readings."""
        with self._lock:
            return Snapshot(self._state, dict(self._images))

    @property
    def refused(self) -> dict[str, int]:
        """Messages refused, by topic."""
        with self._lock:
            return dict(self._refused)

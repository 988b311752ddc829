"""The newest frame as engine and planner see it: which run and episode it belongs to, and as an observation for the policy.

Frames from before the epoch are good for warming up and for nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewam.core.records import Observation
from edgewam.robot_bridge.clock import NS
from edgewam.robot_bridge.policy import Policy
from edgewam.robot_bridge.processes.child import Link


class Frames:
    """`look` takes the newest frame in; the rest describes it."""

    def __init__(self, config: Mapping[str, Any], link: Link) -> None:
        self._link, self._record, self._version = link, link.wires["frame"], 0
        self._cameras = list(config["wires"]["camera_shapes"])
        self._prompt, self._first_seed = config["prompt"], int(config["seed"])
        self._period_ns = round(NS / config["control_hz"])
        self.ticks_per_row = int(config["ticks_per_row"])
        self.is_warm = False
        self.episode = -1  # the one that the policy was reset for
        self._frame = self._record.blank()

    def look(self) -> bool:
        """Take in the newest frame; whether there is a newer one than the last time."""
        newer = self._record.read(self._version)
        if newer is None:
            return False
        self._version, self._frame = newer
        return True

    def warm_up(self, policy: Policy) -> None:
        """Run everything once on this frame, so that no first call falls into the run."""
        policy.reset(self._prompt, self._first_seed)
        policy.infer(self.observation())
        self.is_warm = True

    @property
    def is_of_this_run(self) -> bool:
        """Whether the epoch is set and the frame shows the robot after it."""
        epoch_ns = self._link.epoch_ns
        return bool(epoch_ns) and int(self._frame["t_ns"]) >= epoch_ns - self._period_ns

    def begins_episode(self, policy: Policy) -> bool:
        """Whether the frame is of another episode than the last one; the policy was then reset for it."""
        episode = int(self._frame["episode"])
        if episode == self.episode:
            return False
        self.episode = episode
        policy.reset(self._prompt, self._first_seed + episode)
        return True

    @property
    def tick(self) -> int:
        """Control ticks since the epoch."""
        return int(self._frame["tick"])

    @property
    def episode_tick(self) -> int:
        """Control ticks since the episode began."""
        return int(self._frame["episode_tick"])

    @property
    def number(self) -> int:
        """The camera process's number of the frame."""
        return int(self._frame["number"])

    @property
    def t_frame_ns(self) -> int:
        """When the frame was published."""
        return int(self._frame["t_frame_ns"])

    @property
    def t_capture_ns(self) -> int:
        """When the oldest of its images was taken; of a robot without cameras, when its state was measured."""
        stamps = self._frame["t_camera_ns"]
        return int(stamps.min()) if len(stamps) else int(self._frame["t_ns"])

    def observation(self) -> Observation:
        """For the policy, whose ticks are `ticks_per_row` control ticks of the episode; between two the earlier counts."""
        frame = self._frame
        return Observation(
            images={name: frame[name].copy() for name in self._cameras},
            state=frame["state"].copy(),
            tick=self.episode_tick // self.ticks_per_row,
            t_capture_ns=self.t_capture_ns,
        )

"""A policy in two parts for tests, and a bridge without processes: engine and planner over real records, one look at a time."""

from __future__ import annotations

import json
import os

import numpy as np

from edgewam.core.errors import EdgewamError
from edgewam.core.records import ActionChunk, Observation
from edgewam.robot_bridge.clock import now_ns
from edgewam.robot_bridge.control.modes import Mode
from edgewam.robot_bridge.processes.child import Link
from edgewam.robot_bridge.processes.engine_process import Engine
from edgewam.robot_bridge.processes.planner_process import Planner
from edgewam.robot_bridge.records.wires import Wires
from tests.robot_bridge import fakes

PERIOD_NS = 20_000_000


class Split:
    """Row i of a chunk is (tick + i + 1000 * context tick) / 1e6; its context is its tick and the number of its refresh."""

    chunk_size, horizon, refresh_ticks = 16, 80, 32

    def __init__(self, offset_trained=True, prefix_trained=False, in_background=False, max_prefix=8):
        self.offset_trained, self.prefix_trained, self.max_prefix = offset_trained, prefix_trained, max_prefix
        self._in_background = in_background
        self.resets, self.prefixes, self.planned = [], [], []
        self.reset("", 0)

    def reset(self, prompt, seed):
        """Forget."""
        self.resets.append((prompt, seed))
        self._context, self._coming = None, None

    @property
    def context_tick(self):
        """Of the context in use."""
        return self._context and self._context["tick"]

    def plan(self, observation: Observation):
        """A context of this tick."""
        self.planned.append(observation.tick)
        self._context = {"tick": observation.tick, "number": len(self.planned)}

    def start_plan(self, observation):
        """At once, or when `finish` says so."""
        assert self._coming is None
        self._coming = observation
        if not self._in_background:
            self.finish()

    def finish(self):
        """The device is done."""
        self.plan(self._coming)
        self._coming = None

    def poll_plan(self):
        """Nothing under way."""
        return self._coming is None

    def act(self, observation, prefix=None):
        """Sixteen rows from the context."""
        if self._context is None:
            raise EdgewamError("no plan yet")
        age = observation.tick - self._context["tick"]
        if not 0 <= age < self.horizon or (age % self.chunk_size and not self.offset_trained):
            raise EdgewamError(f"age {age} has no chunk")
        rows = (observation.tick + np.arange(16) + 1000 * self._context["tick"]) / 1e6
        actions = np.stack([rows, np.full(16, 0.5)], 1).astype(np.float32)
        self.prefixes.append(None if prefix is None else prefix.copy())
        if prefix is not None:
            actions[: len(prefix)] = prefix
        return ActionChunk(actions, observation.tick, observation.tick, observation.t_capture_ns)

    def infer(self, observation):
        """For warming up."""
        if self._context is None or observation.tick - self._context["tick"] >= self.refresh_ticks:
            self.plan(observation)
        return self.act(observation)

    def export_context(self):
        """As JSON."""
        return json.dumps(self._context).encode()

    def import_context(self, data):
        """From JSON."""
        self._context = json.loads(data)


def split(**options) -> Split:
    """A factory for other processes."""
    return Split(**options)


class Bench:
    """Records of one run without processes: frames go in, `engine` and `planner` look when they are told to."""

    def __init__(self, num_joints=2, camera_shapes=fakes.SPEC.camera_shapes, **config):
        self.wires = Wires(num_joints, camera_shapes)
        self.config = {
            "replan_ticks": 8, "control_hz": 50.0, "prompt": "reach", "seed": 7, "generation": 0, "parent_pid": os.getppid(),
            "schedule": "replace", "planner": "engine", "refresh_ticks": None, "max_context_age_ticks": None, "ticks_per_row": 1,
            **config,
        }  # fmt: skip
        self.epoch_ns = now_ns() - 10**9
        self._frames = 0
        self._chunk_version = self._context_version = 0
        self._links = []

    def link(self, role, **config):
        """A child's side, over descriptors of its own."""
        description = self.wires.describe()
        description["fds"] = {name: os.dup(fd) for name, fd in description["fds"].items()}
        whole = {**self.config, **config, "role": role, "wires": description}
        self._links.append(Link(whole))
        return whole, self._links[-1]

    def engine(self, policy, **config):
        """An engine that has not looked yet."""
        return Engine(*self.link("engine", **config), policy)

    def planner(self, policy, **config):
        """A planner that has not looked yet."""
        return Planner(*self.link("planner", **config), policy)

    def start(self):
        """The epoch is set."""
        control = self.wires["control"].blank()
        control["epoch_ns"] = self.epoch_ns
        self.wires["control"].write(control)

    def frame(self, episode_tick, episode=0, episode_start=0, t_ns=None, **shown):
        """Publish a frame; `shown`: state and images by camera."""
        self._frames += 1
        frame = self.wires["frame"].blank()
        frame["episode"], frame["episode_tick"], frame["tick"] = episode, episode_tick, episode_start + episode_tick
        frame["t_ns"] = self.epoch_ns + int(frame["tick"]) * PERIOD_NS if t_ns is None else t_ns
        frame["number"], frame["t_frame_ns"] = self._frames, frame["t_ns"] + 3
        frame["t_camera_ns"] = frame["t_ns"] - 5
        for name, value in ({"state": (0.1, 0.5)} | shown).items():
            frame[name] = value
        self.wires["frame"].write(frame)

    def io(self, applied_id, delay_ticks, mode=Mode.RUN):
        """What io says of itself."""
        status = self.wires["status_io"].blank()
        status["applied_id"], status["delay_ticks"], status["mode"] = applied_id, delay_ticks, mode
        self.wires["status_io"].write(status)

    def chunk(self):
        """The newest chunk if it is a new one."""
        newer = self.wires["chunk"].read(self._chunk_version)
        self._chunk_version = newer[0] if newer else self._chunk_version
        return newer and newer[1]

    def context(self):
        """The newest context if it is a new one."""
        newer = self.wires["context"].read(self._context_version)
        self._context_version = newer[0] if newer else self._context_version
        return newer and newer[1]

    def close(self):
        """Give the memory back."""
        for link in self._links:
            link.wires.close()
        self.wires.close()

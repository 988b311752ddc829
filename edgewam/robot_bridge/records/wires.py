"""The records between the processes of the bridge: their layouts, and one object that makes or attaches them all.

driver --state--> io, recorder          driver --physics--> camera --frame--> engine, planner, recorder
camera --cameras--> io (the stamps of the newest frame: io reads no images)
planner --context--> engine             engine --chunk--> io, recorder         io --command--> driver
supervisor --control--> all             each child --status_<role>--> all      io --log--> supervisor, recorder, view
view --requests--> io (a network may ask for a stop, nothing else)
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgewam.robot_bridge.records.shm_record import Layout, SharedRecord, Value

ROLES = ("io", "driver", "camera", "engine", "planner", "recorder", "view")
MAX_ROWS = 64  # longest chunk, in rows of the policy
MAX_PHYSICS = 4096  # longest physics state, in float64
MAX_CONTEXT = 1 << 20  # longest planner context in bytes, unless the run asks for another
LOG_ROWS = 4096  # 80 s at 50 Hz: how long a reader of the log may sleep


def layouts(num_joints: int, camera_shapes: Mapping[str, Iterable[int]], max_context: int = MAX_CONTEXT) -> dict[str, Layout]:
    """Record name -> structured dtype for a robot.  Times are CLOCK_MONOTONIC ns; `tick` counts control ticks from the epoch.

    control: written by the supervisor.  quit ends the run; `stops` and `resets` count local requests, `estop` latches.
    requests: `stops` counts requests that came over a network.
    state: `applied_tick`, `applied_ns`: the newest command that the driver has handed to the robot, and when.
    frame: `t_camera_ns` per camera, in the order of camera_shapes; `is_lost` per camera: the image is an old one, or black.
    cameras: the same two of the newest frame, for io.
    chunk: `start_tick`, `observation_tick` in control ticks; its rows are `ticks_per_row` control ticks apart.
        t_capture_ns: oldest camera of its frame; t_frame_ns, t_begin_ns, t_sent_ns: frame published, inference begun, chunk
        published.  context_tick, context_number: the refresh it was computed with (-1: the policy has none).  prefix_rows:
        leading rows that were given to the policy.
    command: `is_live` 0: io decided it for a disarmed arm at rest, which somebody may have moved: not for a real robot.
    status: `applied_id`, `delay_ticks` (io only): newest chunk that supplied a command, and control ticks from its
        observation to its first command.  `lost` (recorder only): items in no file; its `cause` 1: recording has ended.
    """
    num_cameras = len(dict(camera_shapes))
    moment: list[Any] = [("episode", "<i8"), ("tick", "<i8"), ("episode_tick", "<i8"), ("t_ns", "<i8")]
    state: list[Any] = [*moment, ("state", "<f4", (num_joints,))]
    images: list[Any] = [(name, "u1", tuple(shape)) for name, shape in camera_shapes.items()]
    cameras: list[Any] = [
        ("number", "<i8"),
        ("t_frame_ns", "<i8"),
        ("render_ns", "<i8"),
        ("t_camera_ns", "<i8", (num_cameras,)),
        ("is_lost", "u1", (num_cameras,)),
    ]
    chunk: list[Any] = [(name, "<i8") for name in ("id", "episode", "start_tick", "observation_tick", "frame_number")]
    chunk += [(name, "<i8") for name in ("t_capture_ns", "t_frame_ns", "t_begin_ns", "t_sent_ns", "infer_ns")]
    chunk += [(name, "<i8") for name in ("context_tick", "context_number")]
    chunk += [(name, "<i4") for name in ("rows", "columns", "ticks_per_row", "prefix_rows")]
    chunk += [("dtype", "S8"), ("actions", "<f4", (MAX_ROWS, num_joints))]
    status: list[Any] = [("is_ready", "u1"), ("mode", "u1"), ("cause", "u1"), ("delay_ticks", "<i4")]
    status += [(name, "<i8") for name in ("heartbeat_ns", "count", "tick", "applied_id", "lost")]
    context: list[Any] = [(name, "<i8") for name in ("episode", "number", "tick", "t_capture_ns", "plan_ns", "length")]
    return {
        "control": np.dtype(
            [("epoch_ns", "<i8"), ("quit", "u1"), ("is_armed", "u1"), ("estop", "u1"), ("stops", "<i8"), ("resets", "<i8")]
        ),
        "requests": np.dtype([("stops", "<i8")]),
        "state": np.dtype([*state, ("applied_tick", "<i8"), ("applied_ns", "<i8")]),
        "physics": np.dtype([*state, ("length", "<i4"), ("physics", "<f8", (MAX_PHYSICS,))]),
        "frame": np.dtype([*state, *cameras, *images]),
        "cameras": np.dtype([("number", "<i8"), ("t_camera_ns", "<i8", (num_cameras,)), ("is_lost", "u1", (num_cameras,))]),
        "context": np.dtype([*context, ("data", "u1", (max_context,))]),
        "chunk": np.dtype(chunk),
        "command": np.dtype(
            [("tick", "<i8"), ("episode", "<i8"), ("t_sent_ns", "<i8"), ("is_live", "u1"), ("target", "<f8", (num_joints,))]
        ),
        **{f"status_{role}": np.dtype(status) for role in ROLES},
    }


def log_layout(num_joints: int) -> Layout:
    """One row per command sent.  Enough to count everything again without asking the process that wrote it.

    `reject` and `infer_ns` belong to the chunk received in this tick (`is_received`), `chunk_id`, `row`, `is_seam`, the times of
    its making and its context to the chunk that supplied the command (chunk_id -1: none).  num_blended: chunks that were
    mixed into the command.  The clamp masks have bit j for joint j; workspace: the callback changed or refused the command.
    is_seam: first command of a chunk that took over from another one while running.  is_anchor: the command is the robot's
    measured pose, taken anew (episode, reset): it has no predecessor.  camera_age_ns: of the oldest camera.
    state, state_t_ns: the robot's report that the tick saw; applied_*: what the driver had handed on by then.
    """
    fields: list[Any] = [(name, "<i8") for name in ("tick", "deadline_ns", "woken_ns", "sent_ns", "episode", "chunk_id")]
    fields += [(name, "<i8") for name in ("t_capture_ns", "t_frame_ns", "t_begin_ns", "t_chunk_ns", "infer_ns")]
    fields += [(name, "<i8") for name in ("observation_tick", "context_tick", "context_number", "state_t_ns", "camera_age_ns")]
    fields += [("applied_tick", "<i8"), ("applied_ns", "<i8"), ("row", "<i4"), ("num_blended", "<i4")]
    fields += [("range_clamps", "<u4"), ("step_clamps", "<u4"), ("acceleration_clamps", "<u4")]
    fields += [(name, "u1") for name in ("mode", "cause", "is_received", "reject", "is_seam", "workspace")]
    fields += [(name, "u1") for name in ("is_anchor", "is_violation")]
    return np.dtype([*fields, ("state", "<f4", (num_joints,)), ("command", "<f8", (num_joints,))])


class Log:
    """A ring of `capacity` log rows in anonymous shared memory, populated at once so that no process grows while it fills.

    One writer fills `row(number)` and then publishes the number of rows written so far in its status record.
    """

    def __init__(self, layout: Layout, capacity: int = LOG_ROWS, fd: int | None = None) -> None:
        size = capacity * layout.itemsize
        if fd is None:
            fd = os.memfd_create("edgewam")
            os.ftruncate(fd, size)
        self.fd = fd
        self._map = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self._table: Value = np.frombuffer(self._map, layout, capacity)

    def row(self, number: int) -> Value:
        """The place of row `number`, for the writer."""
        place: Value = self._table[number % len(self._table)]
        return place

    def read(self, first: int, end: int) -> tuple[Value, int]:
        """Copies of rows [first, end) as far as the ring still holds them, and how many of them are lost.

        end: the writer's published count.  The row behind the oldest one may be being written right now and is never given.
        """
        lost = max(0, end - first - (len(self._table) - 1))
        return self._table[np.arange(first + lost, end) % len(self._table)], lost

    def close(self) -> None:
        """Unmap and close the descriptor."""
        if not self._map.closed:
            self._table = self._table[:0].copy()
            self._map.close()
            os.close(self.fd)


class Wires:
    """All records of one run.  The supervisor makes them; a child attaches the same ones from `describe()`."""

    def __init__(
        self,
        num_joints: int,
        camera_shapes: Mapping[str, Iterable[int]],
        fds: Mapping[str, int] | None = None,
        max_context: int = MAX_CONTEXT,
        only: Iterable[str] | None = None,
    ) -> None:
        self._config = {
            "num_joints": num_joints,
            "camera_shapes": {name: list(shape) for name, shape in camera_shapes.items()},
            "max_context": max_context,
        }
        fds = fds or {}
        wanted = None if only is None else frozenset(only)
        self.records = {
            name: SharedRecord(layout, fds.get(name))
            for name, layout in layouts(num_joints, camera_shapes, max_context).items()
            if wanted is None or name in wanted
        }
        for name in fds.keys() - self.records.keys() - {"log"}:
            os.close(fds[name])
        self.log = Log(log_layout(num_joints), fd=fds.get("log"))

    def __getitem__(self, name: str) -> SharedRecord:
        return self.records[name]

    @property
    def fds(self) -> dict[str, int]:
        """Record name -> descriptor that a child must inherit."""
        return {**{name: record.fd for name, record in self.records.items()}, "log": self.log.fd}

    def describe(self) -> dict[str, Any]:
        """Plain data from which a child that inherited the descriptors attaches the same records."""
        return {**self._config, "fds": self.fds}

    @classmethod
    def attach(cls, description: Mapping[str, Any], only: Iterable[str] | None = None) -> Wires:
        """The records of the parent, in a child.  `only` these, where images and contexts would take room for nothing; the other
        descriptors are closed.
        """
        return cls(**description, only=only)

    def close(self) -> None:
        """Unmap everything; the kernel frees the memory when the last process has done so."""
        for record in self.records.values():
            record.close()
        self.log.close()

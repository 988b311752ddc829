"""The records between the processes of the bridge: their layouts, and one object that makes or attaches them all.

driver --state--> io        driver --physics--> camera --frame--> engine --chunk--> io --command--> driver
parent --control--> all     each child --status_<role>--> parent       io --log--> parent
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgewam.robot_bridge.shm_record import Layout, SharedRecord, Value

ROLES = ("io", "driver", "camera", "engine")
MAX_ROWS = 64  # longest chunk, in control ticks
MAX_PHYSICS = 4096  # longest physics state, in float64


def layouts(num_joints: int, camera_shapes: Mapping[str, Iterable[int]]) -> dict[str, Layout]:
    """Record name -> structured dtype for a robot.  Times are CLOCK_MONOTONIC ns; `tick` counts from the epoch."""
    moment: list[Any] = [("episode", "<i8"), ("tick", "<i8"), ("episode_tick", "<i8"), ("t_ns", "<i8")]
    state: list[Any] = [*moment, ("state", "<f4", (num_joints,))]
    images: list[Any] = [(name, "u1", tuple(shape)) for name, shape in camera_shapes.items()]
    chunk: list[Any] = [
        ("id", "<i8"),
        ("episode", "<i8"),
        ("start_tick", "<i8"),
        ("observation_tick", "<i8"),
        ("t_capture_ns", "<i8"),
        ("infer_ns", "<i8"),
        ("rows", "<i4"),
        ("columns", "<i4"),
        ("dtype", "S8"),
        ("actions", "<f4", (MAX_ROWS, num_joints)),
    ]
    status = np.dtype([("is_ready", "u1"), ("heartbeat_ns", "<i8"), ("count", "<i8"), ("tick", "<i8"), ("mode", "u1")])
    return {
        "control": np.dtype([("epoch_ns", "<i8"), ("stop", "u1"), ("estop", "u1")]),
        "state": np.dtype(state),
        "physics": np.dtype([*state, ("length", "<i4"), ("physics", "<f8", (MAX_PHYSICS,))]),
        "frame": np.dtype([*state, ("render_ns", "<i8"), *images]),
        "chunk": np.dtype(chunk),
        "command": np.dtype([("tick", "<i8"), ("episode", "<i8"), ("t_sent_ns", "<i8"), ("target", "<f8", (num_joints,))]),
        **{f"status_{role}": status for role in ROLES},
    }


def log_layout(num_joints: int) -> Layout:
    """One row per command sent.  Enough to count everything again without asking the process that wrote it.

    `reject` and `infer_ns` belong to the chunk received in this tick (`is_received`), `chunk_id`, `row` and `t_capture_ns` to
    the chunk that supplied the command (chunk_id -1: none); the clamp masks have bit j for joint j.
    """
    fields: list[Any] = [(name, "<i8") for name in ("tick", "deadline_ns", "sent_ns", "episode", "chunk_id", "t_capture_ns")]
    fields += [("infer_ns", "<i8"), ("row", "<i4"), ("range_clamps", "<u4"), ("step_clamps", "<u4")]
    fields += [(name, "u1") for name in ("mode", "cause", "is_received", "reject", "is_violation")]
    return np.dtype([*fields, ("command", "<f8", (num_joints,))])


class Log:
    """A table of `rows` log rows in anonymous shared memory; only rows below the writer's published count may be read."""

    def __init__(self, layout: Layout, rows: int, fd: int | None = None) -> None:
        size = max(rows * layout.itemsize, 1)
        if fd is None:
            fd = os.memfd_create("edgewam")
            os.ftruncate(fd, size)
        self.fd = fd
        self._map = mmap.mmap(fd, size)
        self.table: Value = np.frombuffer(self._map, layout, rows)

    def close(self) -> None:
        """Unmap and close the descriptor."""
        if not self._map.closed:
            self.table = self.table[:0].copy()
            self._map.close()
            os.close(self.fd)


class Wires:
    """All records of one run.  The parent makes them; a child attaches the same ones from `describe()`."""

    def __init__(
        self, num_joints: int, camera_shapes: Mapping[str, Iterable[int]], log_rows: int, fds: Mapping[str, int] | None = None
    ) -> None:
        self._config = {
            "num_joints": num_joints,
            "camera_shapes": {name: list(shape) for name, shape in camera_shapes.items()},
            "log_rows": log_rows,
        }
        fds = fds or {}
        self.records = {name: SharedRecord(layout, fds.get(name)) for name, layout in layouts(num_joints, camera_shapes).items()}
        self.log = Log(log_layout(num_joints), log_rows, fds.get("log"))

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
    def attach(cls, description: Mapping[str, Any]) -> Wires:
        """The records of the parent, in a child."""
        return cls(**description)

    def close(self) -> None:
        """Unmap everything; the kernel frees the memory when the last process has done so."""
        for record in self.records.values():
            record.close()
        self.log.close()

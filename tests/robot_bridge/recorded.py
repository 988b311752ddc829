"""A bridge without processes for tests of the recorder and the page: records that the test itself publishes."""

from __future__ import annotations

import os

import numpy as np

from edgewam.robot_bridge.clock import now_ns
from edgewam.robot_bridge.control.modes import Mode
from edgewam.robot_bridge.recorder.flight_recorder import FlightRecorder
from edgewam.robot_bridge.records.wires import Wires

NUM_JOINTS = 3
CAMERAS = {"cam_high": (24, 32, 3), "cam_wrist": (12, 16, 3)}
PERIOD_NS = 20_000_000


class Bridge:
    """Publishes ticks, frames, chunks and contexts as the processes of a run would."""

    def __init__(self, num_joints: int = NUM_JOINTS, cameras=CAMERAS) -> None:
        self.wires = Wires(num_joints, cameras)
        self.rng = np.random.default_rng(0)
        self.rows = 0
        self.sent = {"frame": [], "chunk": [], "context": [], "state": [], "tick": []}

    def config(self, path, generation: int = 0, **more):
        """What a recorder is told."""
        return {
            "role": "recorder", "record": str(path), "generation": generation, "parent_pid": os.getpid(), "control_hz": 50.0,
            "wires": self.wires.describe(), "policy_factory": "somewhere.make", "policy_args": {"speed": 1}, "prompt": "reach",
            "seed": 7, "robot": "fake", **more,
        }  # fmt: skip

    def recorder(self, path, **more) -> FlightRecorder:
        """A recorder of this bridge."""
        arguments = {"opener": more.pop("opener")} if "opener" in more else {}
        return FlightRecorder(self.config(path, **more), self.wires, **arguments)

    def _write(self, name, **fields):
        value = self.wires[name].blank()
        for key, item in fields.items():
            value[key] = item
        self.wires[name].write(value)
        self.sent[name].append(value)
        return value

    def state(self, tick, **more):
        """The robot's report of a tick."""
        joints = self.rng.normal(size=self.wires["state"].layout["state"].shape).astype(np.float32)
        fields = {"tick": tick, "episode_tick": tick, "t_ns": now_ns(), "state": joints, **more}
        return self._write("state", **fields)

    def frame(self, number, tick=None, **more):
        """Pictures, noise all over: what no lossy format gives back."""
        layout = self.wires["frame"].layout
        cameras = self.wires.describe()["camera_shapes"]
        images = {name: self.rng.integers(0, 256, shape, dtype=np.uint8) for name, shape in cameras.items()}
        tick = number if tick is None else tick
        joints = self.rng.normal(size=layout["state"].shape).astype(np.float32)
        moment = {"number": number, "tick": tick, "episode_tick": tick, "t_ns": now_ns(), "t_frame_ns": now_ns()}
        return self._write("frame", **{**moment, "t_camera_ns": now_ns(), "state": joints, **images, **more})

    def chunk(self, number, actions=None, **more):
        """A chunk of eight rows, or of the given ones [rows, D]."""
        layout = self.wires["chunk"].layout
        if actions is None:
            actions = self.rng.normal(size=(8, layout["actions"].shape[1])).astype(np.float32)
        padded = np.zeros(layout["actions"].shape, np.float32)
        padded[: len(actions)] = actions
        fields = {"id": number, "rows": len(actions), "columns": actions.shape[1], "dtype": b"<f4", "ticks_per_row": 1}
        fields |= {"context_number": -1, "t_sent_ns": now_ns(), "actions": padded}
        return self._write("chunk", **{**fields, **more})

    def context(self, number, tick, data=b"context", **more):
        """A planner's answer."""
        value = self.wires["context"].blank()
        value["data"][: len(data)] = np.frombuffer(data, np.uint8)
        return self._write("context", number=number, tick=tick, length=len(data), data=value["data"], **more)

    def tick(self, mode=Mode.RUN, **more):
        """One command of io, in the log."""
        row = self.wires.log.row(self.rows)
        for name in row.dtype.names:
            row[name] = 0
        row["tick"], row["mode"], row["chunk_id"] = self.rows, mode, -1
        row["deadline_ns"] = now_ns()
        row["sent_ns"] = row["deadline_ns"] + 100_000
        row["state"], row["command"] = (self.rng.normal(size=row[name].shape) for name in ("state", "command"))
        for name, item in more.items():
            row[name] = item
        self.sent["tick"].append(row.copy())
        self.rows += 1
        self.status("io", count=self.rows, tick=self.rows - 1, mode=mode)

    def status(self, role, **fields):
        """A child's sign of life."""
        value = self.wires[f"status_{role}"].blank()
        value["is_ready"], value["heartbeat_ns"] = 1, now_ns()
        for name, item in fields.items():
            value[name] = item
        self.wires[f"status_{role}"].write(value)

    def close(self):
        """Give the memory back."""
        self.wires.close()

"""The io tick on real records in simulated time: a robot that goes where it is told, two cameras, an engine, all in one process.

Nothing of the bridge is replaced: the records, the controller and the log are the ones of a run, only the clock is the test's.
A fault spoils what one of the others publishes, or the record itself, for a span of ticks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from edgewam.core.records import ActionChunk
from edgewam.robot_bridge.control.chunks import to_record
from edgewam.robot_bridge.processes import child, io_process
from edgewam.robot_bridge.records.shm_record import Value
from edgewam.robot_bridge.records.wires import Wires
from edgewam.robot_bridge.run import RunSettings
from tests.robot_bridge.faults.robot import HORIZON, SPEC, wave

PERIOD_NS = 20_000_000
EPOCH_NS = 10**12
LEAD_NS = 4_000_000  # the state is this old at its tick
BEGIN = 64  # first tick of a fault, in the middle of a run
REPLAN_TICKS, DELAY_TICKS, CAMERA_EVERY = 8, 2, 2  # as aloha_sim with the shipped bundle: a command 43 ms after its picture
MAX_CONTEXT_AGE = 32


@dataclass(frozen=True)
class Spoiler:
    """What a fault does in simulated time.

    point: which value it gets ("state", "frame", "answer" (an ActionChunk), "chunk" (its record), "status"; "tick": None, called
        before the tick).
    spoil: (world, tick, value) -> the value to publish instead, or None to publish nothing.
    ticks: how long it lasts; total: ticks of the whole run.  settings: of the run, where they differ from the defaults.
    """

    point: str
    spoil: Callable[[World, int, Any], Any]
    ticks: int = 48
    total: int = 320
    settings: RunSettings | None = None


class World:
    """Everything around the io tick, at the times at which aloha_sim and the shipped bundle do it."""

    def __init__(
        self, spoiler: Spoiler | None, set_clock: Callable[[Callable[[], int]], None], schedule: str, acceleration: float | None
    ) -> None:
        """acceleration: the limit of every joint, rad/s^2, or None."""
        settings = spoiler.settings if spoiler and spoiler.settings else RunSettings()
        self.wires = Wires(SPEC.num_joints, SPEC.camera_shapes)
        self.config = {
            **asdict(replace(settings, replan_ticks=REPLAN_TICKS, schedule=schedule)),
            "max_acceleration": None if acceleration is None else [acceleration] * SPEC.num_joints,
            "lower": SPEC.lower.tolist(),
            "upper": SPEC.upper.tolist(),
            "max_velocity": SPEC.max_velocity.tolist(),
            "control_hz": SPEC.control_hz,
            "num_ticks": 10_000,
            "role": "io",
            "parent_pid": os.getppid(),
            "wires": self.wires.describe() | {"fds": {name: os.dup(fd) for name, fd in self.wires.fds.items()}},
        }
        self.spoiler, self.now, self.pose = spoiler, EPOCH_NS, wave(0)
        self.chunk_number, self.frame_number = 0, 0
        self.frame: Value | None = None
        self.dead: set[str] = set()  # records whose writer has been killed
        self.due: dict[int, ActionChunk] = {}  # tick -> an answer that comes late
        set_clock(lambda: self.now)
        control = self.wires["control"].blank()
        control["epoch_ns"], control["is_armed"] = EPOCH_NS, 1
        self.wires["control"].write(control)
        self.link = child.Link(self.config)
        self.loop = io_process._Loop(self.config, self.link)

    def run(self) -> Value:
        """Play all ticks; the log."""
        total = self.spoiler.total if self.spoiler else 200
        for tick in range(total):
            deadline = EPOCH_NS + tick * PERIOD_NS
            self._others(tick, deadline)
            self.now = deadline + 100_000
            self.loop.tick(tick, deadline, self.now, False, False)
            command = self.wires["command"].read()
            if command is not None:
                self.pose = command[1]["target"].copy()
        end = int(self.wires["status_io"].read()[1]["count"])
        rows, lost = self.wires.log.read(0, end)
        assert lost == 0
        return rows

    def close(self) -> None:
        """Give the memory back."""
        self.wires.close()
        self.link.wires.close()

    def _others(self, tick: int, deadline: int) -> None:
        """What driver, camera and engine have published by this tick."""
        self._spoiled("tick", tick, None)
        self._publish("state", tick, self._state(tick, deadline - LEAD_NS))
        if tick % CAMERA_EVERY == 0:
            self.frame_number += 1
            self._publish("frame", tick, self._frame(tick, deadline - LEAD_NS))
        if tick >= DELAY_TICKS and (tick - DELAY_TICKS) % REPLAN_TICKS == 0:
            answer = self._spoiled("answer", tick, self._answer(tick - DELAY_TICKS, deadline))
            if answer is not None:
                self.due[tick] = answer
        if tick in self.due:
            self._publish("chunk", tick, self._record(self.due.pop(tick), deadline))
        status = self.wires["status_engine"].blank()
        status["is_ready"], status["heartbeat_ns"] = 1, deadline - LEAD_NS
        self._publish("status", tick, status, "status_engine")

    def _spoiled(self, point: str, tick: int, value: Any) -> Any:
        spoiler = self.spoiler
        if spoiler is None or spoiler.point != point or not BEGIN <= tick < BEGIN + spoiler.ticks:
            return value
        return spoiler.spoil(self, tick, value)

    def _publish(self, point: str, tick: int, value: Value, record: str | None = None) -> None:
        value = self._spoiled(point, tick, value)
        if value is not None:
            self.wires[record or point].write(value)
            if point == "frame":
                self.frame = value
                self._publish("cameras", tick, self._stamps(value))

    def _state(self, tick: int, t_ns: int) -> Value:
        value = self.wires["state"].blank()
        value["tick"] = value["episode_tick"] = tick
        value["t_ns"], value["state"] = t_ns, self.pose
        value["applied_tick"], value["applied_ns"] = tick - 1, t_ns
        return value

    def _frame(self, tick: int, t_ns: int) -> Value:
        value = self.wires["frame"].blank()
        value["tick"] = value["episode_tick"] = tick
        value["t_ns"], value["state"] = t_ns, self.pose
        value["number"], value["t_frame_ns"] = self.frame_number, t_ns + 3_000_000
        value["t_camera_ns"] = t_ns
        for name in SPEC.camera_shapes:
            value[name] = 128
        return value

    def _stamps(self, frame: Value) -> Value:
        value = self.wires["cameras"].blank()
        for name in ("number", "t_camera_ns", "is_lost"):
            value[name] = frame[name]
        return value

    def _answer(self, observed: int, now_ns: int) -> ActionChunk:
        """The wave from the newest frame on, as an engine gives it that looks every eight ticks."""
        capture = int(self.frame["t_camera_ns"].min()) if self.frame is not None else now_ns
        seen = now_ns - DELAY_TICKS * PERIOD_NS - LEAD_NS  # a later frame has not been looked at yet
        rows = wave(observed + np.arange(HORIZON)).astype(np.float32)
        return ActionChunk(rows, observed, observed, min(capture, seen))

    def _record(self, answer: ActionChunk, now_ns: int) -> Value:
        self.chunk_number += 1
        value = to_record(self.wires["chunk"], answer, self.chunk_number, 0, 0, 11_000_000)
        value["t_sent_ns"] = now_ns - 1_000_000
        value["context_number"] = answer.observation_tick // MAX_CONTEXT_AGE
        value["context_tick"] = answer.observation_tick - answer.observation_tick % MAX_CONTEXT_AGE
        return value

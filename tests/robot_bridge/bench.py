"""A controller on a bench: two joints, a tick counter, and a robot, camera and engine that are in time unless told otherwise."""

from __future__ import annotations

import numpy as np

from edgewam.core.records import ActionChunk
from edgewam.robot_bridge.control.chunks import to_record
from edgewam.robot_bridge.control.controller import Controller
from edgewam.robot_bridge.control.decision import Health, Sensed
from edgewam.robot_bridge.control.orders import Orders
from edgewam.robot_bridge.records.shm_record import SharedRecord
from edgewam.robot_bridge.records.wires import layouts

PERIOD_NS = 20_000_000
LOWER, UPPER, STEP = np.array([-1.0, 0.0]), np.array([1.0, 1.0]), np.array([0.06, 0.1])
CONFIG = {
    "lower": LOWER,
    "upper": UPPER,
    "max_velocity": STEP * 50,
    "max_acceleration": None,
    "control_hz": 50.0,
    "jump_s": 0.15,
    "approach_fraction": 0.25,
    "ramp_ticks": 4,
    "max_pause_s": 0.5,
    "max_hold_s": 2.0,
    "max_state_age_s": 0.06,
    "max_observation_age_s": 0.5,
    "max_camera_age_s": 0.2,
    "engine_lost_s": 1.0,
    "max_context_age_ticks": None,
    "resume_chunks": 2,
    "max_rejects": 25,
    "schedule": "replace",
    "crossfade_ticks": 4,
    "ensemble_decay": 0.05,
    "ticks_per_row": 1,
    "workspace": None,
}
ACCELERATION = np.array([40.0, 60.0])  # 0.016 and 0.024 per tick and tick: four to five ticks to full speed
RECORD = SharedRecord(layouts(2, {})["chunk"])


class Bench:
    """Steps a `Controller`; `commands` holds what was sent."""

    def __init__(self, pose=(0.0, 0.5), **config):
        self.config = {**CONFIG, **config}
        self.controller = Controller(self.config)
        self.tick, self.pose, self.episode, self.ids = 0, np.array(pose, np.float32), 0, 0
        self.is_armed = True
        self.commands = []

    def now(self):
        return 10**12 + self.tick * PERIOD_NS

    def chunk(self, actions, start=None, number=None, episode=None, age_ns=PERIOD_NS, observed=None, fill=None, **fields):
        self.ids += 1
        start = self.tick if start is None else start
        actions = np.array(actions) if isinstance(actions, np.ndarray) else np.array(actions, np.float32)
        chunk = ActionChunk(actions, start, start if observed is None else observed, self.now() - age_ns)
        number = self.ids if number is None else number
        value = to_record(RECORD, chunk, number, self.episode if episode is None else episode, 0, 0)
        for name, content in fields.items():
            value[name] = content
        if fill is not None:
            value["actions"] = fill
        return value

    def step(self, received=None, sensed=True, age_ns=4_000_000, camera_age_ns=0, engine_age_ns=0, **orders):
        report = Sensed(self.pose, self.episode, self.now() - age_ns) if sensed else None
        asked = Orders(**{"is_armed": self.is_armed, **orders})
        decision = self.controller.step(self.tick, self.now(), report, received, asked, Health(camera_age_ns, engine_age_ns))
        self.tick += 1
        if decision.command is not None:
            self.commands.append(decision.command)
        return decision

    def started(self):
        self.step()
        return self

    def running(self, actions=None):
        """Started, and following a chunk: by default one that stands still for a long time."""
        self.started()
        self.step(self.chunk(np.tile(np.float32([0.0, 0.5]), (64, 1)) if actions is None else actions))
        return self

    def recovered(self):
        """Feed good chunks that stand where the arm stands, until a hold is over or it is clear that it will not end."""
        for _ in range(4):
            decision = self.step(self.chunk(np.tile(self.commands[-1].astype(np.float32), (16, 1))))
        return decision


def ramp(start, rate, rows=16):
    return np.stack([start + rate * np.arange(rows), np.full(rows, 0.5)], 1).astype(np.float32)

"""Test doubles with the interface that LeRobot documents for robots and cameras: degrees, percent, errors of its kinds."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np

SPEED = 400.0  # units per second


class ArmDouble:
    """Two joints in degrees and a gripper in percent that run to their goals; `config` as LeRobot robots have one."""

    def __init__(self, *, port="", disable_torque_on_disconnect=True, calibrated=True, cameras=(), dead=False):
        self.config = SimpleNamespace(port=port, disable_torque_on_disconnect=disable_torque_on_disconnect)
        self.is_connected, self.is_calibrated = False, calibrated
        self.calls, self._cameras, self.dead = [], cameras, dead
        self._goal = {"pan.pos": 10.0, "lift.pos": -20.0, "gripper.pos": 40.0}
        self._pose, self._time = dict(self._goal), time.monotonic()

    @property
    def action_features(self):
        return dict.fromkeys(self._goal, float)

    @property
    def observation_features(self):
        return {**self.action_features, **{name: (4, 6, 3) for name in self._cameras}}

    def connect(self, calibrate=True):
        self.calls.append(("connect", calibrate))
        if self.dead:
            raise ConnectionError("no such port")
        self.is_connected = True

    def get_observation(self):
        if not self.is_connected or self.dead:
            raise ConnectionError("the bus is silent")
        now = time.monotonic()
        reach = SPEED * (now - self._time)
        self._pose = {name: pose + float(np.clip(self._goal[name] - pose, -reach, reach)) for name, pose in self._pose.items()}
        self._time = now
        return dict(self._pose)

    def send_action(self, action):
        self.get_observation()
        assert set(action) == set(self._goal) and all(isinstance(value, float) for value in action.values())
        self.calls.append(("send_action", dict(action)))
        self._goal = dict(action)
        return action

    def disconnect(self):
        self.calls.append(("disconnect",))
        self.is_connected = False


class CameraDouble:
    """A camera whose thread would fill `latest_timestamp` (seconds of perf_counter); every read here is a new frame."""

    def __init__(self, *, broken=False, stamped=True):
        self.is_connected, self.broken, self._stamped = False, broken, stamped

    @property
    def latest_timestamp(self):
        return time.perf_counter() if self._stamped else None

    def connect(self):
        self.is_connected = True

    def read_latest(self, max_age_ms=500):
        if self.broken:
            raise TimeoutError("no frame")
        return np.full((4, 6, 3), 120, np.uint8)

    def disconnect(self):
        self.is_connected = False
